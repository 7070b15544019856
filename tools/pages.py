"""The site: every notebook as a page in _docs/, with Sphinx, MyST-NB and Furo (their settings: site/conf.py).

pages.py    nothing is run again but nbdev's show_doc; broken links and formulas are errors; no network is needed
"""
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from docs import cfg, plain, processed
from nbdev.doclinks import NbdevLookup
from sphinx.cmd.build import main as sphinx
from sphinx.util.matching import patfilter

GROUPS = {'First': '*', 'Tutorials': 'tutorials/*', 'Dashboards': 'dashboards/*', 'Library': 'library/*',
          'Benchmark': 'benchmark/*', 'Engine': 'engine/*', 'Verbs and boards': 'app/*',
          'What of the paper holds': 'experiments/claims',
          'Tables of the paper': 'experiments/t*', 'Figures of the paper': 'experiments/f*',
          'The appendix': 'experiments/a*',
          'Questions of our own': 'experiments/x*', 'Speed': 'experiments/e*'}


def lead(source):
    "The whole first cell of `source`, of which nbdev keeps title and subtitle"
    cells = nbformat.read(source, as_version=4).cells
    title = next((c.source for c in cells if c.cell_type == 'markdown' and re.search(r'^# ', c.source, re.M)), None)
    return nbformat.v4.new_markdown_cell(NbdevLookup().linkify(title)) if title else sys.exit(f'{source}: no cell '
                                                                                              f'has a title')


def contents():
    "Navigation: every notebook by its title, in groups"
    names = [p.relative_to(cfg.nbs_path).with_suffix('').as_posix() for p in cfg.nbs_path.rglob('*.ipynb')
             if p.name != cfg.readme_nb]
    lists = [f'```{{toctree}}\n:caption: {name}\n:glob:\n:maxdepth: 1\n{glob}\n```'
             for name, glob in GROUPS.items() if patfilter(names, glob)]
    return nbformat.v4.new_markdown_cell('\n\n'.join(['## All pages', *lists]))


def text(nb):
    return '\n\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')


def addresses(rooms):
    """Where nbdev's links to this package lead on the web -> notebook and heading, a method's class where it has
    none of its own"""
    index = import_module(f'{cfg.lib_path.name}._modidx').d
    host, found = index['settings']['doc_host'] + index['settings']['doc_baseurl'], {}
    for path, nb in rooms:
        module = f"{cfg.lib_path.name}.{path.stem.split('_', 1)[-1]}"
        heads = re.findall(r'^#+ (\S+)$', text(nb), re.M)
        for name, (url, _) in index['syms'].get(module, {}).items():
            name = name.removeprefix(module + '.')
            anchor = next((f'#{n}' for n in (name, name.split('.')[0]) if n in heads), '')
            found[f'{host}/{url}'] = path.as_posix() + anchor
    return found


def untangled(source, local, up):
    """Markdown without what nbdev's links spoil: those inside of links and code go, those to this package stay on
    the site"""
    source = re.sub(r'\[([^][]*)\[(`[^`]+`)\]\([^)]*\)([^][]*)\]\(', r'[\1\2\3](', source)
    source = re.sub(r'^```.*?^```', lambda m: re.sub(r'\[(`[^`]+`)\]\([^)]*\)', r'\1', m[0]), source, flags=re.M | re.S)
    # it belongs to the heading after it
    source = re.sub(r'^\[source\]\((.*)\)\n\n(#+ .*)$', r'\2\n\n[source](\1)', source, flags=re.M)
    return re.sub(r'\]\((https?:[^)]+)\)', lambda m: '](' + (up + local[m[1]] if m[1] in local else m[1]) + ')', source)


def prepare():
    "nbdev's notebooks, made plain, as Sphinx's source"
    source = processed()
    pages = [(p, plain(nbformat.read(p, as_version=4))) for p in sorted(source.rglob('*.ipynb'))]
    local = addresses((p.relative_to(source), nb) for p, nb in pages if re.match(r'\d+_', p.name))
    for path, nb in pages:
        to = path.relative_to(source)
        nb.cells[0] = lead(cfg.nbs_path/to)
        if path.name == cfg.readme_nb:
            nb.cells.append(contents())
        for c in nb.cells:
            if 'solution' in c.metadata.get('tags', []):
                c.metadata.tags.append('hide-cell')                    # folded here as in JupyterLab
            if c.cell_type == 'markdown':
                c.source = untangled(c.source, local, '../'*(len(to.parts) - 1))
        nbformat.write(nb, path)
    return source


def leads(link, page, ids):
    "Whether a link of a page ends at a file of the site, and at an anchor of it if it names one"
    url = urlsplit(unquote(link))
    to = (page.parent/url.path).resolve() if url.path else page
    return to.is_file() and (not url.fragment or url.fragment in ids.get(to, ()))


def wrong(out):
    "What no page may have: a link that leads nowhere, a formula or a link left as text, anything loaded from elsewhere"
    pages = {p.resolve(): BeautifulSoup(p.read_text(encoding='utf-8'), 'html.parser') for p in out.rglob('*.html')}
    ids = {p: {t['id'] for t in page.find_all(id=True)} for p, page in pages.items()}
    styles = [(p, p.read_text(encoding='utf-8')) for p in out.rglob('*.css')]
    for p, page in pages.items():
        styles += [(p, t.string or '') for t in page.find_all('style')]
        for t in page.find_all(True):
            for link in filter(None, map(t.get, ('href', 'src', 'poster', 'data', 'action'))):
                if re.match(r'\w+:|//', link):
                    if t.name != 'a' and not link.startswith('data:'):
                        yield f'{p.name}: <{t.name}> is loaded from elsewhere: {link}'
                elif not leads(link, p, ids):
                    yield f'{p.name}: there is no {link}'
        for t in page.find_all(string=re.compile(r'\$|\]\(')):
            if t.find_parent('article') and not t.find_parent(['pre', 'code', 'math']):
                yield f'{p.name}: left as text: {t}'
    for p, css in styles:
        yield from (f'{p.name}: {u} is loaded from elsewhere'
                    for u in re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//\S+', css))


def site():
    source = prepare()
    # _docs is replaced by a whole site or left as it was
    with TemporaryDirectory(prefix='docs-') as tmp:
        out = Path(tmp)/'html'
        if sphinx(['-qW', '-c', str(Path(__file__).parent/'site'), '-d', f'{tmp}/doctrees', str(source), str(out)]):
            sys.exit('the site has broken links or formulas: see above')
        if bad := list(wrong(out)):
            sys.exit('\n'.join(bad))
        shutil.rmtree(cfg.doc_path, ignore_errors=True)
        shutil.move(out, cfg.doc_path)
    print(f"{cfg.doc_path/'index.html'}: {len(list(cfg.doc_path.rglob('*.html')))} pages")


if __name__ == '__main__':
    site()
