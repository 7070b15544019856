"Prune, combine, augment: small image sets that train well on hard labels. The verbs are listed in `pca_nb.api`."
__version__ = "0.3.0"

from importlib import import_module

_HOMES = {  # name -> the module that defines it, imported when the name is first used
    'ImageSet': 'imageset', 'load_data': 'datasets', 'sample_photos': 'datasets', 'DATASETS': 'datasets',
    'save_folder': 'files', 'save_npz': 'files', 'save_parquet': 'parquet', 'save_hub_folder': 'hub_folder',
    'show_images': 'viz',
    'RECIPES': 'recipes', 'difficulty': 'scores', 'METHODS': 'methods', 'Method': 'methods',
    'inspect': 'inspection', 'score': 'compression', 'compress': 'compression',
    'evaluate': 'evaluation', 'train_teacher': 'evaluation', 'store_labels': 'evaluation',
    'benchmark': 'benchmarking', 'report': 'api', 'claims': 'api',
}
__all__ = list(_HOMES)


def __getattr__(name):
    "Import the module of a name when it is first used."
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOMES[name]}', __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
