"The site: a small one is built as `make docs` builds the whole, and every promise is broken once."
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

root = Path(__file__).resolve().parents[1]
PRUNE = next((root/'nbs'/'library').glob('*_prune.ipynb'))
INDEX = '''# Small

> A formula in the lead: $x_1$

See [prune](library/10_prune.ipynb#by_difficulty) and [the toy](experiments/t99_toy.ipynb#What-it-shows).'''
TOY = '''# A toy table

> Never run again

`by_difficulty` ranks, [`by_difficulty`, again](../library/10_prune.ipynb) breaks ties. Then

$$H=-\\sum_c p_c\\log p_c$$'''
BAD = '''# Bad

[no page](nowhere.ipynb), [no anchor](experiments/t99_toy.ipynb#Nothing-there), $\\nosuchcommand x$'''


def small(folder, index):
    "An index and an experiment whose code cannot run"
    (folder/'nbs'/'experiments').mkdir(parents=True)
    shutil.copy(root/'settings.ini', folder)
    ran = new_code_cell("raise SystemExit('run again')", outputs=[new_output('stream', text='a committed quokka')])
    toy = [new_markdown_cell(TOY), ran, new_markdown_cell('## What it shows')]
    for name, cells in {'index': [new_markdown_cell(index)], 'experiments/t99_toy': toy}.items():
        nbformat.write(new_notebook(cells=cells), folder/'nbs'/f'{name}.ipynb')
    return folder


def build(folder):
    return subprocess.run([sys.executable, root/'tools'/'pages.py'], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A small index, an experiment, and a committed room; the texts of the pages, by name"
    folder = small(tmp_path_factory.mktemp('docs'), INDEX)
    (folder/'nbs'/'library').mkdir()
    shutil.copy(PRUNE, folder/'nbs'/'library'/'10_prune.ipynb')   # a name that renumbering leaves alone
    linked = new_notebook(cells=[new_markdown_cell('# scores\n\n> Stands in for the notebook that 10_prune links to')])
    scores = next((root/'nbs'/'library').glob('*_scores.ipynb'))
    nbformat.write(linked, folder/'nbs'/'library'/scores.name)
    (folder/'_docs').mkdir()
    (folder/'_docs'/'gone.html').write_text('a page of a notebook that is gone')
    r = build(folder)
    assert r.returncode == 0, r.stderr
    return {p.relative_to(folder/'_docs').as_posix(): p.read_text(encoding='utf-8')
            for p in (folder/'_docs').rglob('*') if p.suffix in ('.html', '.css', '.js')}


def test_formulas_are_math_elements(site):
    assert re.search(r'<math><msub><mi>x</mi><mn>1</mn></msub></math>', site['index.html'])
    assert re.search(r'<div class="math"><math display="block">.*∑.*</math></div>', site['experiments/t99_toy.html'])


def test_links_between_notebooks_become_links_between_pages(site):
    links = re.findall(r'<a class="reference internal" href="(\S+?)"', site['index.html'])
    assert {'library/10_prune.html#by-difficulty', 'experiments/t99_toy.html#what-it-shows'} <= {*links}
    assert not re.findall(r'href="[^"]*\.ipynb', ''.join(site.values()))


def test_a_name_in_backticks_leads_to_its_room_on_the_site(site):
    article = re.search(r'<article.*</article>', site['experiments/t99_toy.html'], re.S)[0]
    assert re.findall(r'href="(\S*10_prune\S*)"', article) == ['../library/10_prune.html#by-difficulty',
                                                               '../library/10_prune.html']
    assert 'github.io' not in article


def test_a_room_keeps_its_whole_lead_and_shows_signatures(site):
    lead = nbformat.read(PRUNE, 4).cells[1].source
    last = re.sub(r'\W+', ' ', lead).split()[-1]
    first = re.search(r'<h1>.*?<h2>', site['library/10_prune.html'], re.S)[0]
    assert last in first
    assert re.search(r'<h3>by_difficulty<.*?<span class="nf">by_difficulty</span>', site['library/10_prune.html'], re.S)


def test_outputs_are_the_committed_ones(site):
    assert 'a committed quokka' in site['experiments/t99_toy.html']


def test_navigation_groups_the_titles(site):
    side = re.search(r'<div class="sidebar-tree">.*?</div>', site['library/10_prune.html'], re.S)[0]
    assert re.findall(r'caption-text">(.*?)<', side) == ['Library', 'Tables of the paper']
    assert 'A toy table' in side


def test_a_page_without_a_notebook_goes(site):
    assert {'index.html', 'library/10_prune.html'} <= {*site} and 'gone.html' not in site


def test_search_finds_a_word_of_an_output(site):
    assert re.search(r'\bquokka\b', site['searchindex.js'])


def test_no_page_loads_anything_from_elsewhere(site):
    for name, text in site.items():
        if name.endswith('.html'):
            assert not re.findall(r'<(?!a\b)\w+\s[^>]*?(?:src|href)="(?:https?:)?//[^"]*"', text), name
        elif name.endswith('.css'):
            assert not re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', text), name


def test_a_dead_link_an_unknown_anchor_and_a_bad_formula_are_refused_by_name(tmp_path):
    small(tmp_path, BAD)
    (tmp_path/'_docs').mkdir()
    (tmp_path/'_docs'/'index.html').write_text('the site before')
    r = build(tmp_path)
    assert r.returncode == 1 and r.stderr.endswith('broken links or formulas: see above\n')
    for what in ('nowhere.ipynb', 'Nothing-there', 'nosuchcommand'):
        assert re.search(rf'index\.ipynb\S* WARNING: .*{what}', r.stderr), f'{what} is not named in\n{r.stderr}'
    assert (tmp_path/'_docs'/'index.html').read_text() == 'the site before'


@pytest.mark.parametrize('what, html', {
    'there is no gone.html': '<a href="gone.html">x</a>',
    'there is no b.html#gone': '<a href="b.html#gone">x</a>',
    'there is no #gone': '<a href="#gone">x</a>',
    'there is no gone.png': '<img src="gone.png">',
    '<script> is loaded from elsewhere: https://cdn.org/x.js': '<script src="https://cdn.org/x.js"></script>',
    '<link> is loaded from elsewhere: //fonts.org/x.css': '<link rel="stylesheet" href="//fonts.org/x.css">',
    '@import "https://fonts.org/x is loaded from elsewhere': '<style>@import "https://fonts.org/x</style>',
    'left as text: costs $x$': '<article><p>costs $x$</p></article>',
    'left as text: [x](y.ipynb)': '<article><p>[x](y.ipynb)</p></article>',
}.items())
def test_each_fault_of_a_page_is_named(tmp_path, monkeypatch, what, html):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root/'tools')
    from pages import wrong
    fine = ('<h1 id="here">x</h1><a href="https://arxiv.org">x</a><a href="b.html#here">x</a>'
            '<article><code>$x</code></article>')
    (tmp_path/'b.html').write_text(fine)
    assert list(wrong(tmp_path)) == []
    (tmp_path/'a.html').write_text(html)
    assert list(wrong(tmp_path)) == [f'a.html: {what}']


def sources(path, kind):
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == kind]


def anchors(path):
    "What a link may name on a notebook's page: its headings, as Jupyter writes them, and what it exports"
    heads = re.findall(r'^#+ +(.+?) *$', '\n'.join(sources(path, 'markdown')), re.M)
    code = '\n'.join(s for s in sources(path, 'code') if re.match(r'#\| *export\b', s))
    return {h.replace(' ', '-') for h in heads} | {n for n in re.findall(r'^(?:def|class) (\w+)', code, re.M)
                                                   if n[0] != '_'}


def test_links_between_committed_notebooks_resolve():
    dead = []
    for p in (p for p in (root/'nbs').rglob('*.ipynb')
              if not any(q.startswith(('_', '.')) for q in p.relative_to(root).parts)):
        text = re.sub(r'^```.*?^```', '', '\n\n'.join(sources(p, 'markdown')), flags=re.M | re.S)
        for link in re.findall(r'\]\((?!\w+:)([^)\s]+)\)', text):
            url = urlsplit(unquote(link))
            to = (p.parent/url.path).resolve() if url.path else p
            if not to.is_file() or url.fragment and url.fragment not in anchors(to):
                dead.append(f'{p.name}: {link}')
    assert not dead
