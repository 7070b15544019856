"The committed package, notebooks and README agree with each other; no git is needed, so this works in a tarball too."
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
bin_dir = Path(sys.executable).parent


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(root/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*'))
    shutil.copy(root/'settings.ini', tmp_path)
    return tmp_path


def texts(folder, glob):
    return {str(p.relative_to(folder)): p.read_text(encoding='utf-8') for p in folder.rglob(glob)}


def test_package_is_what_the_notebooks_export(copy, clean_env):
    subprocess.run([bin_dir/'nbdev_export'], cwd=copy, env=clean_env, check=True)
    assert texts(copy/'pca_nb', '*.py') == texts(root/'pca_nb', '*.py'), 'run `make export`'


def test_notebooks_are_clean(copy, clean_env):
    before = texts(copy/'nbs', '*.ipynb')
    subprocess.run([bin_dir/'nbdev_clean'], cwd=copy, env=clean_env, check=True)
    assert texts(copy/'nbs', '*.ipynb') == before, 'run `nbdev_clean`'


def test_readme_is_index(clean_env):
    r = subprocess.run([sys.executable, 'tools/docs.py', 'check'], cwd=root, env=clean_env, capture_output=True,
                       text=True)
    assert r.returncode == 0, r.stderr


def imports_of(module):
    "The modules of this package that a module imports, anywhere in it"
    tree = ast.parse((root/'pca_nb'/f'{module}.py').read_text(encoding='utf-8'))
    return {n.module.split('.')[1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
            and (n.module or '').startswith('pca_nb.')}


def test_a_room_imports_only_earlier_rooms():
    order = [p.stem.split('_', 1)[1] for p in sorted((root/'nbs').glob('[0-9][0-9]_*.ipynb'))]
    assert {p.stem for p in (root/'pca_nb').glob('[a-z]*.py')} == set(order)
    for i, m in enumerate(order):
        assert imports_of(m) <= set(order[:i]), f'{m} imports {imports_of(m) - set(order[:i])}, which come later'


def test_nothing_exported_needs_a_development_package():
    text = ''.join(p.read_text() for p in (root/'pca_nb').glob('[a-z]*.py'))
    assert not re.findall(r'^\s*(?:from|import) (?:nbdev|fastcore|execnb|IPython)\b', text, re.M)


def test_experiments_define_nothing_and_assert_something():
    for p in (root/'nbs'/'experiments').glob('*.ipynb'):
        code = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code')
        assert not re.search(r'^\s*def ', code, re.M), f'{p.name} has a def: move it to the library'
        assert re.search(r'^\s*(?:assert|test_)', code, re.M), f'{p.name} asserts nothing'
