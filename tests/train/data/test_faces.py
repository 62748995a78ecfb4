"""Folders of people's pictures, landmarks, pairs, and faces that are drawn."""

import itertools

import numpy as np
import pytest
from PIL import Image

from train.data import (
    align_source,
    choose_alignment,
    load_dataset,
    skip_bad_images,
)
from train.data.faces.landmarks import read_landmarks, write_landmarks
from train.data.faces.model import average_person, draw_person, landmarks
from train.data.faces.source import first_pictures, make_pairs
from train.data.faces.synthetic import (
    Expression,
    View,
    draw_example,
    render,
    rotate,
)
from train.data.files import Files
from train.data.rng import RandomStream
from zoo.face.reference import LANDMARKS
from zoo.spec import Preprocess

SMALL = Preprocess(size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def save(path, value=100, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (20, 24), value if mode == "L" else (value,) * 3).save(path)


def make_lfw(root, people=4, each=3):
    names = [f"Person_{chr(65 + i)}" for i in range(people)]
    for name in names:
        for number in range(1, each + 1):
            save(root / name / f"{name}_{number:04}.jpg")
    return names


PAIRS = """2 2
Person_A 1 2
Person_B 1 3
Person_A 1 Person_B 1
Person_A 2 Person_B 2
Person_C 1 2
Person_D 1 2
Person_C 1 Person_D 1
Person_C 2 Person_D 3
"""


def test_lfw_and_its_pairs(tmp_path):
    make_lfw(tmp_path)
    (tmp_path / "pairs.txt").write_text(PAIRS)
    source = load_dataset(f"lfw:{tmp_path}", "test")
    assert source.class_names == tuple(f"Person_{c}" for c in "ABCD")
    assert len(source) == 10  # Two of twelve pictures are in no pair.
    pairs = source.face_set().pairs
    np.testing.assert_array_equal(pairs.fold, [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(pairs.same, [True, True, False, False] * 2)
    assert source.provenance(pairs.second[1]).endswith("Person_B_0003.jpg")
    assert source.provenance(pairs.second[7]).endswith("Person_D_0003.jpg")
    same = source.people[pairs.first] == source.people[pairs.second]
    np.testing.assert_array_equal(same, pairs.same)
    everything = load_dataset(f"lfw:{tmp_path}", "all")
    assert len(everything) == 12
    (tmp_path / "people.txt").write_text("2\n1\nPerson_A 3\n1\nPerson_C 3\n")
    assert len(load_dataset(f"lfw:{tmp_path}", "all")) == 6
    (tmp_path / "pairsDevTrain.txt").write_text(
        "1\nPerson_A 1 2\nPerson_A 1 Person_B 1\n"
    )
    assert len(load_dataset(f"lfw:{tmp_path}", "train")) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Person_B 1 3", "Person_B 1 4", r"line 3: Person_B_0004 is not there"),
        ("Person_A 1 Person_B 1", "Person_A 1 Person_A 2", "line 4.*one person twice"),
        ("Person_B 1 3", "Person_B 1 1", "line 3.*one picture twice"),
        ("Person_B 1 3", "Person_A 2 1", "line 3.*is repeated"),
        ("Person_D 1 2\n", "", "announces 2 folds of 2 . 2 pairs, 8 in all.*are 7"),
        (
            "Person_B 1 3",
            "Person_B 1 Person_A 1",
            "line 3: pair 2 of fold 1 must be NAME",
        ),
        ("Person_C 1 2", "Person_C one 2", "line 6: pair 1 of fold 2"),
        ("2 2", "two", "line 1: expected the numbers"),
    ],
)
def test_a_wrong_list_of_pairs_is_named(tmp_path, old, new, message):
    make_lfw(tmp_path)
    (tmp_path / "pairs.txt").write_text(PAIRS.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_dataset(f"lfw:{tmp_path}", "test")


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ("2\n2\nPerson_A 3\n1\nPerson_C 3\n", "'1' in fold 1 of 2 people must be NAME"),
        ("2\n1\nPerson_A 3\n1\nPerson_A 3\n", "fold 2 of 1 people is there twice"),
        ("2\n1\nPerson_A 3\n2\nPerson_C 3\n", "fold 2 announces 2 people and has 1"),
        ("1\n1\nPerson_A 3\nPerson_B 3\n", "'Person_B 3' comes after the last fold"),
        ("²\n1\nPerson_A 3\n", r"people\.txt, line 1: .* number of folds, got '²'"),
        ("7\n", "fold 1 announces 7 people and has 0"),
        ("1\n1\nNobody 3\n", r"people\.txt names nobody of whom there is a picture"),
    ],
)
def test_a_wrong_list_of_people_is_named(tmp_path, people, message):
    make_lfw(tmp_path)
    (tmp_path / "people.txt").write_text(people)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"lfw:{tmp_path}", "all")


@pytest.mark.parametrize("head", ["0 300", "3 0", "0"])
def test_a_list_without_pairs_is_named(tmp_path, head):
    make_lfw(tmp_path)
    (tmp_path / "pairs.txt").write_text(f"{head}\n")
    with pytest.raises(ValueError, match=rf"line 1: '{head}' announces no pairs"):
        load_dataset(f"lfw:{tmp_path}", "test")


@pytest.mark.parametrize("name", ["people.txt", "landmarks.csv"])
def test_a_list_in_another_encoding_is_named(tmp_path, name):
    make_lfw(tmp_path)
    (tmp_path / name).write_bytes("1\nJosé 3\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}:2: not UTF-8 \(.*\); save it as"):
        load_dataset(f"lfw:{tmp_path}", "all")


def test_lfw_without_pictures_or_lists(tmp_path):
    with pytest.raises(ValueError, match=r"NAME/NAME_0001\.jpg, found none"):
        load_dataset(f"lfw:{tmp_path}", "test")
    make_lfw(tmp_path)
    with pytest.raises(ValueError, match=r"split 'test' needs the file pairs\.txt"):
        load_dataset(f"lfw:{tmp_path}", "test")


def test_two_pictures_of_one_number_are_refused(tmp_path):
    make_lfw(tmp_path / "lfw")
    save(tmp_path / "lfw/Person_A/Person_A_0001.png")
    with pytest.raises(ValueError, match=r"0001\.jpg and .*0001\.png are two pictures"):
        load_dataset(f"lfw:{tmp_path / 'lfw'}", "all")
    for person in range(1, 41):
        save(tmp_path / f"orl/s{person}/1.pgm", mode="L")
    save(tmp_path / "orl/s7/1.png", mode="L")
    with pytest.raises(ValueError, match=r"s7/1\.pgm and s7/1\.png are two pictures"):
        load_dataset(f"orl:{tmp_path / 'orl'}", "all")


def test_youtube_faces_are_templates(tmp_path):
    for video in ("Ann/0", "Ann/1", "Bob/0", "Bob/2"):
        for frame in range(3):
            save(tmp_path / "frames" / video / f"{frame}.jpg")
    lines = ["fold, first, second, same", "1, Ann/0, Ann/1, 1", "2, Ann/0, Bob/2, 0"]
    (tmp_path / "splits.txt").write_text("\n".join(lines))
    source = load_dataset(f"ytf:{tmp_path}", "test")
    assert len(source) == 9  # Bob's video 0 is in no pair.
    faces = source.face_set()
    np.testing.assert_array_equal(faces.templates, np.repeat([0, 1, 2], 3))
    np.testing.assert_array_equal(faces.pairs.second, [1, 2])
    np.testing.assert_array_equal(faces.pairs.same, [True, False])
    (tmp_path / "splits.txt").write_text("1, Ann/0, Ann/7, 1")
    with pytest.raises(ValueError, match="line 1: video Ann/7 is not there"):
        load_dataset(f"ytf:{tmp_path}", "test")


def test_orl_keeps_probes_and_ten_people_out_of_training(tmp_path):
    for person in range(1, 41):
        for number in range(1, 11):
            save(tmp_path / f"s{person}" / f"{number}.pgm", person, mode="L")
    train = load_dataset(f"orl:{tmp_path}", "train", color="rgb")
    assert len(train) == 150
    assert len(train.class_names) == 30
    test = load_dataset(f"orl:{tmp_path}", "test", color="rgb")
    assert test.class_names == train.class_names
    faces = test.face_set()
    assert len(test) == 400
    assert faces.gallery.sum() == 200
    assert (faces.labels == -1).sum() == 100
    chosen = {test.provenance(i) for i in np.flatnonzero(~faces.gallery)}
    assert not chosen & {train.provenance(i) for i in range(150)}
    assert (faces.labels[faces.pairs.first] == -1).all()
    assert (faces.labels[faces.pairs.second] == -1).all()
    counts = np.bincount(faces.pairs.fold)
    assert len(counts) == 10
    assert counts.min() >= 80
    assert test.image(0).shape == (24, 20, 3)


def test_an_image_folder_is_of_people_for_this_task(tmp_path):
    for split, people in (("train", "ab"), ("test", "bcd")):
        for person in people:
            for i in range(4):
                save(tmp_path / split / person / f"{i}.png")
    source = load_dataset(f"imagefolder:{tmp_path}", "test", task="verification")
    assert source.class_names == ("a", "b")
    np.testing.assert_array_equal(np.unique(source.labels), [-1, 1])
    assert load_dataset(f"imagefolder:{tmp_path}", "test").task == "classification"


def test_people_to_train_on_are_those_of_any_training_split(tmp_path, caplog):
    for split, people in (("Training", "ab"), ("Testing", "bcd")):
        for person in people:
            save(tmp_path / split / person / "0.png")
    save(tmp_path / "loose.png")
    name = f"imagefolder:{tmp_path}"
    source = load_dataset(name, "test", task="verification")
    assert source.class_names == ("a", "b")
    assert "loose.png" in caplog.text


def test_a_hold_out_without_images_is_named(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "1.png")
    name = f"imagefolder:{tmp_path}"
    # Both images fall to one split, by a hash of their names.
    assert len(load_dataset(name, "train", task="verification")) == 2
    with pytest.raises(ValueError, match=r"2 images and no splits.* 'test'"):
        load_dataset(name, "test", task="verification")


@pytest.mark.parametrize("form", ["orl", "lfw", "ytf"])
def test_pictures_of_other_names_are_logged(tmp_path, caplog, form):
    if form == "orl":
        for person in range(1, 41):
            save(tmp_path / f"s{person}/1.PGM", mode="L")
        count = 40
    elif form == "lfw":
        make_lfw(tmp_path)
        save(tmp_path / "Person_A" / "Person_A_0004.JPG")
        count = 13
    else:
        save(tmp_path / "Ann/0/1.JPG")
        count = 1
    save(tmp_path / "odd_5.jpg")
    for _ in range(2):
        assert len(load_dataset(f"{form}:{tmp_path}", "all")) == count
    (record,) = caplog.records
    assert f"{tmp_path}: left out are 1 image(s)" in record.getMessage()
    assert "odd_5.jpg" in record.getMessage()
    with pytest.raises(ValueError, match=r"'test\+all' .*expected one of .*test, all"):
        load_dataset(f"{form}:{tmp_path}", "test+all")


def test_a_moved_set_of_faces_is_the_same(tmp_path):
    six = np.array([[6, 8], [14, 8], [10, 12], [7, 16], [10, 16], [13, 16]], np.float32)
    files = [f"{person}/{i}.png" for person in "ab" for i in range(2)]
    for file in files:
        save(tmp_path / "first" / file)
    write_landmarks(tmp_path / "first/landmarks.csv", dict.fromkeys(files, six))

    def look(folder):
        name = f"imagefolder:{tmp_path / folder}"
        source = load_dataset(name, "all", task="verification")
        return source.fingerprint(), align_source(source, "2d", SMALL).fingerprint()

    before = look("first")
    (tmp_path / "first").rename(tmp_path / "second")
    assert look("second") == before
    save(tmp_path / "second/a/2.png")
    assert look("second")[0]["sha256"] != before[0]["sha256"]
    assert before[0]["sha256"] == before[1]["sha256"]


def test_faces_that_cannot_be_read_are_all_named_and_never_left_out(tmp_path, caplog):
    for split, person in itertools.product(("train", "test"), "abcd"):
        for number in range(3):
            save(tmp_path / split / person / f"{number}.png")
    for name in ("b/1.png", "d/0.png"):
        (tmp_path / "test" / name).write_bytes(b"no picture")
    source = load_dataset(f"imagefolder:{tmp_path}", "test", task="verification")
    with pytest.raises(ValueError, match=r"2 of 12 images(.|\n)*b/1.*(.|\n)*d/0"):
        skip_bad_images(source)
    assert not caplog.text


def test_pairs_are_of_people_who_are_in_one_fold_alone():
    people = np.repeat(np.arange(40), 4)
    pairs = make_pairs(people)
    assert pairs.same.sum() == (~pairs.same).sum()
    same = people[pairs.first] == people[pairs.second]
    np.testing.assert_array_equal(same, pairs.same)
    assert (pairs.first != pairs.second).all()
    both = {frozenset(pair) for pair in zip(pairs.first, pairs.second, strict=True)}
    assert len(both) == len(pairs.first)
    members = [
        {*people[pairs.first[pairs.fold == f]], *people[pairs.second[pairs.fold == f]]}
        for f in range(10)
    ]
    assert len(set.union(*members)) == sum(map(len, members))
    again = make_pairs(people)
    np.testing.assert_array_equal(pairs.second, again.second)
    with pytest.raises(ValueError, match="no two of one person"):
        make_pairs(np.arange(5))


def test_half_of_few_pictures_are_known():
    people = np.array([3] * 4 + [1] * 20 + [2])
    chosen = first_pictures(people)
    np.testing.assert_array_equal(np.flatnonzero(chosen), [0, 1, 4, 5, 6, 7, 8])


def test_landmarks_beside_pictures(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "1.png")
    points = np.arange(12, dtype=np.float32).reshape(6, 2)
    write_landmarks(tmp_path / "landmarks.csv", {"a/1.png": points})
    found = read_landmarks(Files(tmp_path))
    np.testing.assert_array_equal(found["a/1.png"], points)
    assert [*found] == ["a/1.png"]
    header = ",".join(["file", *(f"{a}{i}" for i in range(6) for a in "xy")])
    row = ",".join(["a/1.png", *map(str, range(12))])
    for text, message in {
        "file,x0,y0": "first line must be file,x0,y0",
        f"{header}\n{row},13": "line 2: expected a file and 12 finite numbers",
        f"{header}\n{row[:-2]}nan": "line 2: expected a file and 12 finite",
        f"{header}\n{row}\n{row}": "line 3: a/1.png is named twice",
        f"{header}\n{row.replace('a/1', 'a/2')}": "line 2: a/2.png is not there",
    }.items():
        (tmp_path / "landmarks.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_landmarks(Files(tmp_path))


def test_groups_beside_pictures(tmp_path):
    make_lfw(tmp_path)
    (tmp_path / "pairs.txt").write_text(PAIRS)
    rows = "Person_A,old\nPerson_D,young\nPerson_B,old"
    (tmp_path / "groups.csv").write_text(f"person,group\n{rows}\n")
    source = load_dataset(f"lfw:{tmp_path}", "test")
    faces = source.face_set()
    assert faces.group_names == ("old", "young")
    of = {
        source.class_names[label]: group
        for label, group in zip(faces.labels, faces.groups, strict=True)
    }
    assert of == {"Person_A": 0, "Person_B": 0, "Person_C": -1, "Person_D": 1}
    for text, message in {
        "name,group": "first line must be person,group, got name,group",
        "person,group\nA,old,1": "line 2: expected a person",
        "person,group\nA,old\nA,young": "line 3: expected a person, who is not named",
        "person,group\nA,": "line 2: expected a person",
        "person,group\nNobody,old": r"groups\.csv names nobody.*Nobody.*expected",
    }.items():
        (tmp_path / "groups.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_dataset(f"lfw:{tmp_path}", "test")


def test_noise_moves_what_is_aligned_by_landmarks(tmp_path):
    rows, columns = np.mgrid[:40, :40]
    image = np.stack([6 * rows, 6 * columns, rows + columns], -1).astype(np.uint8)
    for person in "ab":
        for i in range(2):
            (tmp_path / person).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / person / f"{i}.png")
    six = np.array([[12, 16], [28, 16], [20, 24], [14, 32], [20, 32], [26, 32]])
    files = [f"{person}/{i}.png" for person in "ab" for i in range(2)]
    write_landmarks(tmp_path / "landmarks.csv", dict.fromkeys(files, six))
    source = load_dataset(f"imagefolder:{tmp_path}", "all", task="verification")
    exact, little, much, again = (
        align_source(source, "2d", SMALL, noise=noise).image(1).astype(int)
        for noise in (0, 0.5, 3, 3)
    )
    np.testing.assert_array_equal(much, again)
    assert 0 < np.abs(little - exact).mean() < np.abs(much - exact).mean() / 2
    with pytest.raises(ValueError, match="landmark_noise=-1 must be 0 or more"):
        align_source(source, "2d", SMALL, noise=-1)


def test_alignment_goes_as_far_as_the_landmarks(tmp_path):
    for person in "ab":
        for i in range(2):
            save(tmp_path / person / f"{i}.png", 60 * i)
    name = f"imagefolder:{tmp_path}"
    source = load_dataset(name, "all", task="verification")
    assert choose_alignment(source, "auto") == "none"
    with pytest.raises(ValueError, match="'2d' needs one of"):
        choose_alignment(source, "2d")
    six = np.array([[6, 8], [14, 8], [10, 12], [7, 16], [10, 16], [13, 16]], np.float32)
    files = [f"{person}/{i}.png" for person in "ab" for i in range(2)]
    write_landmarks(tmp_path / "landmarks.csv", dict.fromkeys(files[:-1], six))
    source = load_dataset(name, "all", task="verification")
    assert choose_alignment(source, "auto") == "2d"
    with pytest.raises(ValueError, match="'3d' needs 67 or 68 landmarks"):
        choose_alignment(source, "3d")
    aligned = align_source(source, "auto", SMALL)
    np.testing.assert_array_equal(aligned.image(1), np.full((16, 16, 3), 60))
    with pytest.raises(ValueError, match=r"b/1.png has no landmarks"):
        aligned.image(3)


def test_drawn_faces_are_the_same_each_time():
    one, other = draw_example(2, 3), draw_example(2, 3)
    np.testing.assert_array_equal(one["image"], other["image"])
    again = np.asarray(draw_example(2, 4)["image"], int)
    assert np.abs(np.asarray(one["image"], int) - again).mean() > 10
    assert one["landmarks"].shape == (67, 2)
    # The affine camera is that of the pose.
    linear = one["camera"][:, :3]
    scale = np.linalg.norm(linear[0])
    np.testing.assert_allclose(linear, scale * rotate(*one["pose"])[:2], atol=1e-4)


def test_landmarks_lie_on_what_is_drawn():
    """Of a face in front, the pupils are dark where the eyes' landmarks say."""
    person = average_person()
    view = View(
        rotation=np.eye(3),
        scale=26.0,
        center=np.array([40.0, 32.0]),
        light=np.array([0.0, 0.0, 1.0]),
        ambient=0.6,
        gain=np.ones(3),
        blur=0.0,
        grain=0.0,
    )
    image = (
        render(person, view, Expression(), RandomStream((0, 0))).astype(float).mean(-1)
    )
    points = view.project(landmarks(person)) - 0.5
    for eye in (slice(36, 42), slice(42, 48)):
        x, y = points[eye].mean(0).round().astype(int)
        around = image[y - 4 : y + 5, x - 8 : x + 9]
        assert image[y, x] < np.median(around) - 30
    mouth = points[48:68].mean(0).round().astype(int)
    assert abs(mouth[0] - 40) <= 1


def test_the_reference_is_the_average_of_the_model():
    points = landmarks(average_person(), Expression(mouth=0.3))
    shares = (points - [0, 0.32, 0]) / 2.3 + [0.5, 0.5, 0]
    np.testing.assert_allclose(shares, LANDMARKS, atol=1e-4)


def test_people_differ():
    people = [draw_person(RandomStream((i, 1))) for i in range(20)]
    shapes = np.stack([landmarks(person) for person in people])
    gaps = np.linalg.norm(shapes[:, None] - shapes[None], axis=-1).mean(-1)
    assert gaps[~np.eye(20, dtype=bool)].min() > 0.02
