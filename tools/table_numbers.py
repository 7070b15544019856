"""Every number of every table in the committed outputs of the experiment notebooks, in order.

table_numbers.py              prints how many there are, notebook by notebook
table_numbers.py OUT.json     keeps them, for a comparison after a change that must not touch them
"""
import argparse
import json
import re
from pathlib import Path

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r'(?<![\w.])[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?')


def numbers(notebook):
    "Numbers in the cells of all tables of a notebook; row and column names, which may be worded anew, are left out."
    found = []
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        for out in cell.get('outputs', []):
            page = ''.join(out.get('data', {}).get('text/html', ''))
            for td in BeautifulSoup(page, 'html.parser').find_all('td'):
                found += NUMBER.findall(td.get_text())
    return found


def tables(root=ROOT):
    return {p.stem: numbers(p) for p in sorted((root/'nbs'/'experiments').glob('*.ipynb'))}


def main(out):
    found = tables()
    for name, values in found.items():
        print(f'{name}: {len(values)}')
    print(f'all: {sum(map(len, found.values()))}')
    if out:
        text = {name: ' '.join(values) for name, values in found.items()}
        out.write_text(json.dumps(text, indent=0) + '\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', type=Path)
    main(**vars(parser.parse_args()))
