"""Number the library notebooks anew, without gaps, and mend the links between notebooks.

renumber.py     to put a notebook between 12 and 13, call it 012a_name.ipynb and run this
"""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('library', 'benchmark', 'engine', 'app')
NUMBERED = re.compile(r'^\d+[a-z]?_(.+)\.ipynb$')


def notebooks():
    "Numbered notebooks in reading order."
    found = [p for f in FOLDERS for p in (ROOT/'nbs'/f).glob('*.ipynb') if NUMBERED.match(p.name)]
    return sorted(found, key=lambda p: (FOLDERS.index(p.parent.name), int(re.match(r'\d+', p.name)[0]), p.name))


def main():
    names, changed = {}, 0
    for i, p in enumerate(notebooks()):
        name = NUMBERED.match(p.name)[1]
        names[name] = f'{i:03d}_{name}.ipynb'   # as file browsers sort them
        changed += names[name] != p.name
        p.rename(p.with_name(names[name] + '.new'))
    for p in (ROOT/'nbs').rglob('*.ipynb.new'):
        p.rename(p.with_suffix(''))
    for p in [*(ROOT/'nbs').rglob('*.ipynb'), *ROOT.glob('*.md')]:
        text = p.read_text(encoding='utf-8')
        new = re.sub(r'\b\d+[a-z]?_(\w+)\.ipynb', lambda m: names.get(m[1], m[0]), text)   # found by name
        if new != text:
            p.write_text(new, encoding='utf-8')
    print(f'{changed} of {len(names)} notebooks have another number now')


if __name__ == '__main__':
    main()
