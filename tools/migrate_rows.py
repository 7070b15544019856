"""Give result rows of version 0.2 the configurations, keys and method names of version 0.3; nothing measured changes.

migrate_rows.py FILE...     rows (.jsonl) and recorded scores (.npz); what is new already stays as it is,
                            so a second call changes nothing
"""
import json
import re
import sys
from pathlib import Path

import numpy as np

from pca_nb.core import config_hash
from pca_nb.result_store import row_checksum
from pca_nb.storage import atomic_write

DISTIL = {'unit': 'stat_scale', 'per': 'views_per', 'keep': 'keep_iterate', 'carry': 'accumulate'}
VALUES = {'shrink': {'fit': 'lsq'}, 'pool': {'clean': 'shuffled'},
          'order': {'slots': 'one-per-class', 'classes': 'class-after-class'}}


def renamed(d, names):
    "The same dict with some keys under other names."
    return {names.get(k, k): v for k, v in d.items()}


def method_name(name):
    "`el2n-at25` is now `el2n-rank25`."
    return re.sub(r'-at(\d+)$', r'-rank\1', name)


def with_values(d):
    "The same dict with the values that have other names now."
    return {k: VALUES.get(k, {}).get(v, v) if isinstance(v, str) else v for k, v in d.items()}


def recipe(r):
    "A recipe: `smoothing` is now `label_smoothing`."
    return renamed(r, {'smoothing': 'label_smoothing'})


def trained(t):
    "A teacher or a scoring run: its recipe, and `stop` is now `stop_epoch`."
    return renamed(t, {'stop': 'stop_epoch'}) | {'recipe': recipe(t['recipe'])}


def configuration(old):
    "A run's configuration: soft labels and synthesis in parts of their own, and what is absent left out."
    new = {k: old[k] for k in ('data', 'ipc', 'seed', 'size', 'arch')}
    new |= {'method': method_name(old['method']), 'recipe': recipe(old['recipe']), 'tiling': with_values(old['tiling'])}
    if old['scoring']:
        new['scoring'] = trained(old['scoring'])
    if 'teachers' in old:
        store = old['labels'] and with_values(old['labels'])
        new['soft'] = {'teachers': [trained(t) for t in old['teachers']], 'store': store}
    if 'asked' in old:
        made_with = with_values(renamed(old['how'], DISTIL))
        new['synthesis'] = {'teachers': [trained(t) for t in old['asked']], 'cfg': made_with}
    return new


def row(old):
    "A row under its new key; a row that has no `check` gets none."
    if 'label_smoothing' in old['cfg']['recipe']:
        return old
    cfg = configuration(old['cfg'])
    named = {'cfg': cfg, 'engine': old['engine']} if 'engine' in old else cfg
    new = {k: v for k, v in old.items() if k != 'check'} | {'key': config_hash(named), 'cfg': cfg}
    if 'method' in old:
        new['method'] = method_name(old['method'])
    return new | ({'check': row_checksum(new)} if 'check' in old else {})


def migrate_rows(path):
    "Rewrite a file of rows."
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(''.join(json.dumps(row(r)) + '\n' for r in rows))
    return f'{len(rows)} rows'


def migrate_scores(path):
    "Rewrite the configuration in a file of recorded scores; the scores stay."
    with np.load(path, allow_pickle=False) as f:
        arrays = dict(f)
    meta = json.loads(str(arrays['meta']))
    if 'stop' in meta:
        arrays['meta'] = np.array(json.dumps(trained(meta)))
        atomic_write(path, lambda tmp: np.savez(tmp, **arrays))
    return 'scores'


def main(paths):
    for path in map(Path, paths):
        migrate = migrate_scores if path.suffix == '.npz' else migrate_rows
        print(f'{path}: {migrate(path)}')


if __name__ == '__main__':
    main(sys.argv[1:])
