"""Export the notebooks to pca_nb/ as `nbdev_export` does, with `__all__` wrapped to the house's 120 characters."""
import nbdev.maker
from nbdev.doclinks import nbdev_export


class Narrow(nbdev.maker.TextWrapper):
    "nbdev wraps the list alone, without the name in front of it."
    def __init__(self, width, **kw):
        super().__init__(width=width - len('__all__ = '), **kw)


if __name__ == '__main__':
    nbdev.maker.TextWrapper = Narrow
    nbdev_export()
