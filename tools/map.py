"""The map of notebooks, nbs/map.ipynb: every notebook with its subtitle, made from the notebooks themselves."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {'library': 'The library, in reading order', 'benchmark': 'The benchmark', 'engine': 'The engine, measured',
           'app': 'Verbs, command line, boards', 'tutorials': 'Tutorials', 'dashboards': 'Boards to play with',
           'experiments': 'Tables and figures of the paper, and questions of our own'}


def heading(path):
    "Title and subtitle of a notebook."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = next(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    title = re.search(r'^# (.+)$', text, re.M)[1]
    subtitle = re.search(r'^> (.+)$', text, re.M)
    return title, subtitle[1] if subtitle else ''


def section(folder, title):
    "One table: a line per notebook."
    lines = [f'## {title}\n', '| notebook | |', '|---|---|']
    for p in sorted((ROOT/'nbs'/folder).glob('*.ipynb'), key=lambda p: (p.stem != 'claims', p.name)):
        name, about = heading(p)
        # a link inside of a subtitle would be one link in another
        about = re.sub(r'\[([^]]+)\]\([^)]*\)', r'\1', about).replace('|', '\\|')
        shown = p.stem if folder in ('library', 'benchmark', 'engine', 'app') else name
        lines.append(f'| [{shown}]({folder}/{p.name}) | {about} |')
    return '\n'.join(lines)


def cell(number, text):
    return dict(cell_type='markdown', id=f'9a4000{number:02d}', metadata={}, source=text.splitlines(keepends=True))


def notebook():
    "The map as the text of a notebook."
    intro = '# map\n\n> Every notebook in one line\n\nMade by `make map` from the titles of the notebooks; do not edit.'
    texts = [intro, *(section(f, t) for f, t in FOLDERS.items())]
    kernel = dict(display_name='python3', language='python', name='python3')
    nb = dict(cells=[cell(i, t) for i, t in enumerate(texts)], metadata=dict(kernelspec=kernel), nbformat=4,
              nbformat_minor=5)
    return json.dumps(nb, indent=1, ensure_ascii=False) + '\n'


if __name__ == '__main__':
    (ROOT/'nbs'/'map.ipynb').write_text(notebook(), encoding='utf-8')
