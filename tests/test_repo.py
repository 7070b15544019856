"The committed package, notebooks and README agree; no git is needed, so this works in a tarball too."
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
FOLDERS = ('library', 'benchmark', 'engine', 'app')


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(root/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*', '_runs'))
    shutil.copytree(root/'tools', tmp_path/'tools', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(root/'settings.ini', tmp_path)
    (tmp_path/'pca_nb').mkdir()
    shutil.copy(root/'pca_nb'/'__init__.py', tmp_path/'pca_nb')   # the only module that is written by hand
    return tmp_path


def texts(folder, glob):
    return {str(p.relative_to(folder)): p.read_text(encoding='utf-8') for p in folder.rglob(glob)}


def test_package_is_what_the_notebooks_export(copy, clean_env):
    subprocess.run([sys.executable, 'tools/export.py'], cwd=copy, env=clean_env, check=True)
    assert texts(copy/'pca_nb', '*.py') == texts(root/'pca_nb', '*.py'), 'run `make export`'


def test_notebooks_are_clean(copy, clean_env):
    before = texts(copy/'nbs', '*.ipynb')
    subprocess.run([bin_dir/'nbdev_clean'], cwd=copy, env=clean_env, check=True)
    after = texts(copy/'nbs', '*.ipynb')
    dirty = [name for name in before if after[name] != before[name]]
    assert not dirty, 'run `nbdev_clean`'


def test_map_is_that_of_the_notebooks(copy):
    subprocess.run([sys.executable, 'tools/map.py'], cwd=copy, check=True)
    assert (copy/'nbs'/'map.ipynb').read_text() == (root/'nbs'/'map.ipynb').read_text(), 'run `make map`'


@pytest.mark.parametrize('place', ['plain', '.hidden/x'])
def test_readme_is_index(copy, clean_env, tmp_path_factory, place):
    "In any folder, also below a hidden one."
    here = tmp_path_factory.mktemp('checkout')/place
    shutil.copytree(copy, here)
    shutil.copy(root/'README.md', here)
    r = subprocess.run([sys.executable, 'tools/docs.py', 'check'], cwd=here, env=clean_env, capture_output=True,
                       text=True)
    assert r.returncode == 0, r.stderr


def test_ruff_finds_nothing():
    r = subprocess.run([bin_dir/'ruff', 'check', '--output-format', 'concise', '--no-cache'], cwd=root,
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stdout


def order():
    "Modules in the order of their notebooks: folder by folder, number by number."
    books = [p for f in FOLDERS for p in sorted((root/'nbs'/f).glob('*.ipynb'))]
    numbers = [int(p.name.split('_')[0]) for p in books]
    assert numbers == list(range(len(books))), 'run tools/renumber.py'
    return [p.stem.split('_', 1)[1] for p in books]


def imports_of(text):
    "The modules of this package that a module imports at its top, relatively or by its full name"
    found = set()
    for n in ast.parse(text).body:
        if isinstance(n, ast.ImportFrom):
            if n.level == 1 and n.module: found.add(n.module.split('.')[0])
            if n.level == 0 and (n.module or '').startswith('pca_nb.'): found.add(n.module.split('.')[1])
    return found


def late_imports(order, read):
    "(module, what it imports although that comes later)"
    for i, module in enumerate(order):
        late = imports_of(read(module)) - set(order[:i])
        if late: yield module, late


def test_a_module_imports_only_earlier_modules():
    names = order()
    assert {p.stem for p in (root/'pca_nb').glob('[a-z]*.py')} == set(names)
    assert not dict(late_imports(names, lambda m: (root/'pca_nb'/f'{m}.py').read_text(encoding='utf-8')))


def test_the_order_test_can_fail():
    "A relative import of a later module is found, and so is one by its full name."
    made = {'a': 'from .b import x', 'b': 'from .a import y', 'c': 'import os\nfrom pca_nb.d import z', 'd': ''}
    assert dict(late_imports('abcd', made.get)) == {'a': {'b'}, 'c': {'d'}}
    real = {m: (root/'pca_nb'/f'{m}.py').read_text(encoding='utf-8') for m in order()}
    assert dict(late_imports(order()[::-1], real.get))


def test_no_module_is_long():
    "Nbdev's own lines left out: 320 lines are a module of one idea."
    for p in (root/'pca_nb').glob('[a-z]*.py'):
        assert len(p.read_text(encoding='utf-8').splitlines()) <= 320, f'{p.name}: two notebooks?'


def test_data_files_are_installed_with_the_package(tmp_path, clean_env):
    for name in ('setup.py', 'settings.ini', 'README.md'):
        shutil.copy(root/name, tmp_path)
    shutil.copytree(root/'pca_nb', tmp_path/'pca_nb', ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run([sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', 'built'], cwd=tmp_path, env=clean_env,
                   check=True)
    files = [p.name for p in (root/'pca_nb'/'data').iterdir()]
    assert files and all((tmp_path/'built'/'pca_nb'/'data'/name).exists() for name in files)


def functions():
    "(module, function, its body without the docstring as lines, its parameters without `self`)"
    for p in sorted((root/'pca_nb').glob('[a-z]*.py')):
        text = p.read_text(encoding='utf-8')
        for n in ast.walk(ast.parse(text)):
            if not isinstance(n, ast.FunctionDef): continue
            body = n.body[1:] if isinstance(getattr(n.body[0], 'value', None), ast.Constant) else n.body
            lines = text.splitlines()[body[0].lineno-1:n.end_lineno] if body else []
            names = [a.arg for a in n.args.posonlyargs+n.args.args+n.args.kwonlyargs if a.arg not in ('self', 'cls')]
            yield p.stem, n.name, [line.strip() for line in lines], names


def test_no_function_is_long():
    "Counted in characters, so that packing lines does not help; a command of the shell has one parameter per option."
    for module, name, body, parameters in functions():
        assert sum(map(len, body)) <= 1400, f'{module}.{name}: steps with names?'
        assert len(parameters) <= 8 or module.startswith('cli'), f'{module}.{name}: a missing object?'


def test_no_cell_is_long():
    "40 lines, or one class whose methods are short."
    for p in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in str(p): continue
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            one_class = ''.join(c['source']).count('\nclass ') == 1
            if c['cell_type'] == 'code':
                assert len(c['source']) <= (80 if one_class else 40), f"{p.name}, cell {c['id']}: two ideas?"


def test_nothing_exported_needs_a_development_package():
    text = ''.join(p.read_text() for p in (root/'pca_nb').glob('[a-z]*.py'))
    assert not re.findall(r'^\s*(?:from|import) (?:nbdev|fastcore|execnb|IPython)\b', text, re.M)


def test_experiments_assert_something():
    for p in (root/'nbs'/'experiments').glob('*.ipynb'):
        code = [''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']
        assert re.search(r'^\s*(?:assert|test_|check_)', '\n'.join(code), re.M), f'{p.name} asserts nothing'


def test_no_output_names_this_machine():
    "A committed output holds no path of whoever ran it, and nothing from standard error."
    for p in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in str(p): continue
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            for o in c.get('outputs', []):
                text = json.dumps([v for k, v in o.get('data', {}).items() if not k.startswith('image')])
                text += json.dumps(o.get('text', ''))
                assert o.get('name') != 'stderr', f"{p.name}, cell {c['id']}"
                assert not re.search(r'/(tmp|root|work|Users)/\w', text), f"{p.name}, cell {c['id']}"


def test_experiments_define_nothing():
    "What needs a name and a test belongs into the library."
    for p in (root/'nbs'/'experiments').glob('*.ipynb'):
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            found = c['cell_type'] == 'code' and re.search(r'^(def|class) ', ''.join(c['source']), re.M)
            assert not found, f"{p.name}, cell {c['id']}"
