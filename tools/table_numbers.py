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
NUMBER = re.compile(r'(?<![\w.])(?<![^\W\d_]-)[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?')   # not the 18 of ResNet-18
NAMES = {'method', 'claim', 'data', 'scale', 'network'}   # heads of columns that hold names


def cells(table):
    "Texts of a table's cells, without row names, column names, and columns of names."
    head = [th.get_text() for th in table.select_one('thead tr, tr').find_all('th')]
    for row in table.find_all('tr'):
        entries = row.find_all(['th', 'td'])
        heads = head if len(head) == len(entries) else ['']*len(entries)   # a head of several levels names no column
        yield from (e.get_text() for e, h in zip(entries, heads) if e.name == 'td' and h not in NAMES)


def numbers(notebook):
    "Numbers in the cells of all tables of a notebook; names of rows, columns and methods may be worded anew."
    found = []
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        for out in cell.get('outputs', []):
            page = ''.join(out.get('data', {}).get('text/html', ''))
            for table in BeautifulSoup(page, 'html.parser').find_all('table'):
                for text in cells(table):
                    found += NUMBER.findall(text)
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
