"""SN with the options that the released code has."""

from detectron2.config import LazyCall as L

from wsbcn_d2.modeling import norm_with


def released(name, **options):
    """``name`` with unbiased variances: as the released SN and SSN weights were trained."""
    return L(norm_with)(name=name, unbiased=True, **options)
