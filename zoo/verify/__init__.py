"""Certificates: whether a network computes the same as its source.

print(zoo.verify.verify("resnet18"))
"""

from zoo.verify.certificate import Certificate, Check
from zoo.verify.verification import verify

__all__ = ["Certificate", "Check", "verify"]
