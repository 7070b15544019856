"""Profile the relabelling of SRe2L part by part, with this package's store and with the field's archives.

About a minute on two idle cores. Writes nbs/results/relabel.json, which nbs/experiments/t26_relabel_profile.ipynb
reads; `--device cuda` times the copy from the GPU and the writing apart.
"""
import argparse

from pca_nb.costs import relabelling
from pca_nb.speed import save_speed


def main(out, device):
    table = relabelling(device=device)
    save_speed(table, out)
    print(table.to_string())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='?', default='nbs/results/relabel.json')
    parser.add_argument('--device', help='cpu or cuda; the best there is when left out')
    main(**vars(parser.parse_args()))
