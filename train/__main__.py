"""The door of `python -m train`; what it can do is in `train.command_line`."""

from train.memory import is_program, restart_with_huge_pages

if __name__ == "__main__":
    if is_program():
        restart_with_huge_pages()  # Before jax is imported, which takes a while.

    from train.command_line import run

    run()
