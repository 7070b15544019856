"""Train on one small set by DD-Ranking's evaluator and by ours, on hard labels and on soft labels that came with it.

Writes nbs/results/evaluators.json, which nbs/library/08d_tensor_files.ipynb reads. Four minutes on one core.
DD-Ranking is needed: pip install --no-deps ddranking==0.2.0 timm (its numpy<2 is not).
Its data sets are downloads of their own, so digits are put in their place; network, loop, schedule and measuring are
its own.
"""
import argparse
import contextlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import ddranking.metrics.hard_label as theirs_hard
import ddranking.metrics.soft_label as theirs_soft
import torch
from ddranking.utils import TensorDataset
from sklearn.linear_model import LogisticRegression
from torchvision import transforms

from pca_nb.augment import AugmentCfg, normalise
from pca_nb.class_folders import list_class_folder
from pca_nb.datasets import load_data
from pca_nb.files import save_folder
from pca_nb.given_labels import GivenLabels
from pca_nb.listing import read_listing, ReadOptions
from pca_nb.machine import environment_info, pick_device
from pca_nb.models import make_model
from pca_nb.recipes import GivenRecipe, HARD
from pca_nb.tensor_files import list_tensor_folder
from pca_nb.train import train

EPOCHS = 60
PLAIN = dict(epochs=EPOCHS, batch=50, schedule='smoothed', decay_all=True, eval_every=10,
             augment=AugmentCfg(crop_scale=None, flip=0.))
COMMON = dict(dataset='CIFAR10', ipc=10, model_name='ConvNet-3', data_aug_func=None, optimizer='adamw',
              lr_scheduler='cosine', weight_decay=.01, momentum=(.9, .999), im_size=(16, 16), num_epochs=EPOCHS,
              syn_batch_size=50, num_workers=0, device='cpu')


def digits_in_place(full, test):
    "Return a `get_dataset` that gives digits, whatever is asked for."
    def tensors(s): return TensorDataset(normalise(s.images, s.stats), s.labels)
    same = {c: c for c in range(10)}
    train_set, test_set = tensors(full), tensors(test)
    return lambda *_: (3, (16, 16), *full.stats, 10, train_set, test_set, test_set, same, same)


def write_set(full, home):
    "Write ten digits per class as a folder, and as tensors with the logits of a logistic regression on the others."
    small = full[torch.cat([(full.labels == c).nonzero()[:10, 0] for c in range(10)])]
    others = torch.tensor(sorted(set(range(len(full)))-set(small.index[:, 0].tolist())))
    def pixels(s): return s.images[:, 0].flatten(1).numpy()/255
    judge = LogisticRegression(C=.03, max_iter=200).fit(pixels(full[others]), full.labels[others])
    tensors = home/'tensors'
    tensors.mkdir()
    torch.save(normalise(small.images, small.stats), tensors/'images_best.pt')
    torch.save(torch.from_numpy(judge.decision_function(pixels(small))).float(), tensors/'labels_best.pt')
    return save_folder(small, home/'folder')/'images', tensors


def theirs(evaluator, compute):
    "Return their accuracy in percent: the best of those measured every 10 epochs."
    evaluator.test_interval = 10   # of the soft-label evaluator 20, of the other 10
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return compute(evaluator)[0]


def ours(s, test, recipe, labels, seed):
    "Return our accuracy in percent: the best of those at the same epochs, and the last."
    top1 = train(make_model('convnet3', 10, 16, seed), s, recipe, seed, test, labels=labels, device='cpu').top1.dropna()
    return max(top1), top1.iloc[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', nargs='?', default='nbs/results/evaluators.json')
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    full, test = load_data('digits'), load_data('digits', 'test')
    theirs_hard.get_dataset = theirs_soft.get_dataset = digits_in_place(full, test)
    rows = []
    with tempfile.TemporaryDirectory() as home:
        folder, tensors = write_set(full, Path(home))
        views = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*full.stats)])
        place = dict(save_path=f'{home}/theirs/scores.csv')
        hard = theirs_hard.LabelRobustScoreHard(custom_train_trans=views, **place, **COMMON)
        soft = theirs_soft.LabelRobustScoreSoft(soft_label_criterion='kl', soft_label_mode='S', teacher_model_names=[],
                                                loss_fn_kwargs=dict(temperature=1.), **place, **COMMON)
        images, logits = (torch.load(tensors/f'{name}_best.pt', weights_only=True) for name in ('images', 'labels'))
        given = read_listing(list_tensor_folder(tensors, ReadOptions(stats=full.stats)))
        read = replace(read_listing(list_class_folder(folder)), stats=full.stats)
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            score = theirs(hard, lambda e: e._compute_hard_label_metrics_helper(None, str(folder), None, 1e-3, 'syn'))
            best, last = ours(read, test, replace(HARD, **PLAIN), None, seed)
            rows.append(dict(set='folder, hard labels', seed=seed, theirs=score, ours=best, last=last))
            torch.manual_seed(seed)
            score = theirs(soft, lambda e: e._compute_soft_label_metrics_helper(images, None, logits, 1e-3))
            best, last = ours(given, test, GivenRecipe(**PLAIN), GivenLabels(given), seed)
            rows.append(dict(set='tensors, soft labels', seed=seed, theirs=score, ours=best, last=last))
            print(rows[-2:], flush=True)
    made = dict(rows=[{k: round(float(v), 2) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
                epochs=EPOCHS, ddranking='0.2.0', **environment_info(pick_device('cpu')))
    Path(args.out).write_text(json.dumps(made, indent=1)+'\n')


if __name__ == '__main__':
    main()
