"A person opens the dashboards in a real JupyterLab and uses keys and mouse. Skipped where there is no Chromium."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
chromium = shutil.which('chromium')
sync_api = pytest.importorskip('playwright.sync_api', reason="no playwright: pip install 'pca_nb[dev]'")
pytestmark = pytest.mark.skipif(not chromium, reason='no chromium: apt-get install -y --no-install-recommends chromium')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
HOMES = ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR',
         'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR')
QUIET = 'Failed to load resource', 'favicon' # of JupyterLab's own: an optional file that is not there


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The address of a JupyterLab with its own settings and a copy of the notebooks"
    tmp = tmp_path_factory.mktemp('lab')
    shutil.copytree(root/'nbs', tmp/'nbs', ignore=shutil.ignore_patterns('.*'))
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'MPLBACKEND')} | {n: str(tmp/n.lower())
                                                                                         for n in HOMES}
    labconfig = tmp/'jupyter_config_dir'/'labconfig'
    labconfig.mkdir(parents=True)
    quiet = {'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}}
    (labconfig/'page_config.json').write_text(json.dumps(quiet))
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with open(tmp/'lab.log', 'w') as log:
        proc = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1',
                                 f'--port={port}', '--ServerApp.port_retries=0',
                                 '--IdentityProvider.token=test', f"--ServerApp.root_dir={tmp/'nbs'}",
                                 '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
                                env=env, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=test', timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert proc.poll() is None, (tmp/'lab.log').read_text()
                time.sleep(.1)
        yield f'http://127.0.0.1:{port}/lab/tree/%s?token=test&reset', tmp/'nbs'
    finally:
        proc.terminate()
        proc.wait(20)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with sync_api.sync_playwright() as p:
        ctx = p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp('profile')), executable_path=chromium,
                                                   headless=True, args=FLAGS, viewport=dict(width=1280, height=1000))
        yield ctx
        ctx.close()


class Notebook:
    "A notebook that is open in the browser."

    def __init__(self, browser, lab, name, shots):
        address, root = lab
        self.page, self.name, self.file, self.shots, self.odd = browser.new_page(), name, root/name, shots, []
        self.page.set_default_timeout(90_000)
        self.page.on('console', lambda m: m.type == 'error' and not any(q in m.text for q in QUIET)
                     and self.odd.append(m.text))
        self.page.on('pageerror', lambda e: self.odd.append(str(e)))
        self.page.goto(address % name)
        self.idle()

    def idle(self): self.page.wait_for_selector('#jp-main-statusbar >> text=/Python 3.*\\| Idle/')

    def run(self):
        self.page.get_by_role('menuitem', name='Run', exact=True).click()
        self.page.locator('li.lm-Menu-item[data-command="runmenu:run-all"]').click()

    def finish(self, seconds=300):
        "Wait until every cell has run; what is saved then has no error in it, and its widgets are shown."
        end = time.monotonic() + seconds
        while True:
            self.idle()
            self.page.keyboard.press('Control+s')
            self.page.wait_for_timeout(500)
            code = [c for c in json.loads(self.file.read_text())['cells'] if c['cell_type'] == 'code'
                    and ''.join(c['source']).strip()]
            if all(c['execution_count'] for c in code):
                break
            assert time.monotonic() < end, (f"{self.name}: {sum(not c['execution_count'] for c in code)} of "
                                            f"{len(code)} cells have not run")
        bad = [o for c in code for o in c['outputs'] if o['output_type'] == 'error' or o.get('name') == 'stderr']
        assert bad == [] and self.errors() == [] and self.odd == []

    def watch(self):
        "From now on look, a frame at a time, when the board's cell ends and when its picture is there."
        self.page.evaluate("""() => { const seen = window.seen = {}, now = () => performance.now();
            const look = () => {
                const img = document.querySelector('.pca-brush img');
                const prompt = img?.closest('.jp-CodeCell')?.querySelector('.jp-InputPrompt');
                if (img?.naturalWidth) seen.picture ??= now();
                if (/\\d/.test(prompt?.innerText ?? '')) seen.end ??= now();
                if (!(seen.picture && seen.end)) requestAnimationFrame(look);
            }; look(); }""")

    def first_picture(self):
        "Seconds from the end of the board's cell to its picture; none or less if it was there before"
        return self.page.wait_for_function('() => window.seen.picture && window.seen.end && '
                                           '[window.seen.picture-window.seen.end]').json_value()[0]/1000

    def drawn(self, n):
        "Wait for the n-th picture; how long that took, and what the kernel says."
        t = time.perf_counter()
        self.page.wait_for_selector(f'.pca-now[data-drawn="{n}"]')
        return time.perf_counter()-t, self.page.locator('.pca-now').inner_text()

    def source(self): return self.page.locator('.pca-brush img').get_attribute('src')
    def redrawn(self, before):
        self.page.wait_for_function('b => document.querySelector(".pca-brush img").src != b', arg=before)
    def errors(self):
        return self.page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()

    def drag(self, x0, y0, x1, y1):
        "From one place of the picture to another, in shares of its width and height"
        img = self.page.locator('.pca-brush img')
        img.scroll_into_view_if_needed()
        b = img.bounding_box()
        self.page.mouse.move(b['x']+x0*b['width'], b['y']+y0*b['height'])
        self.page.mouse.down()
        self.page.mouse.move(b['x']+(x0+x1)/2*b['width'], b['y']+(y0+y1)/2*b['height'])
        self.page.mouse.move(b['x']+x1*b['width'], b['y']+y1*b['height'])
        self.page.mouse.up()

    def slide(self, k, key=None):
        "Move the k-th slider handle by a key, or with the mouse; how long until the picture has changed."
        src = self.source()
        handle = self.page.locator('.widget-slider .noUi-handle').nth(k)
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box['x']+box['width']/2, box['y']+box['height']/2
        if key:
            handle.focus()
            t = time.perf_counter()
            self.page.keyboard.press(key)
        else:
            self.page.mouse.move(x, y)
            self.page.mouse.down()
            self.page.mouse.move(x+40, y, steps=4)
            t = time.perf_counter()
            self.page.mouse.up()
        self.redrawn(src)
        return time.perf_counter()-t

    def narrow(self):
        self.page.set_viewport_size(dict(width=800, height=1000))
        self.page.wait_for_timeout(500)
        self.shot(800)
        assert self.fits()

    def shot(self, what):
        "Keep a picture of the page, from the board's controls on if there is a board."
        self.page.evaluate("document.querySelector('.pca-brush')?.closest('.jp-OutputArea')?.scrollIntoView()")
        self.page.wait_for_timeout(200)
        self.page.screenshot(path=str(self.shots/f'{self.name.split("/")[-1]}-{what}.png'))

    def fits(self):
        "Nothing is wider than the notebook"
        return self.page.evaluate("(() => { const p = document.querySelector('.jp-WindowedPanel-outer') || "
                                  "document.querySelector('.jp-Notebook'); return p.scrollWidth <= p.clientWidth+1 "
                                  "})()")


@pytest.fixture
def open_notebook(lab, browser, tmp_path):
    shots = Path(os.environ.get('PCA_NB_SHOTS', tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    opened = []

    def open_(name):
        opened.append(Notebook(browser, lab, name, shots))
        return opened[-1]
    yield open_
    for n in opened: n.page.close()


TUTORIALS = '1_first_hour', '4_more_machines'

BOARDS = { # notebook -> a drag on its picture (shares) and what the code then says; the slider that keys and mouse move
    'b1_scores': ((.12, .12, .2, .38), 'low=', 2),
    'b2_bench': (None, '', 0),
    'b3_crops': ((.1, .3, .22, .75), 'box=(', 0),
    'b5_labels': (None, '', 2)}


@pytest.mark.parametrize('board', BOARDS)
def test_a_board_answers_keys_and_mouse(board, open_notebook):
    drag, says, slider = BOARDS[board]
    n = open_notebook(f'dashboards/{board}.ipynb')
    n.watch()
    n.run()
    says_drawn = n.drawn(1)[1]
    first = n.first_picture()
    # the cells after the board keep the kernel busy for a moment
    n.finish()
    key = n.slide(slider, 'ArrowRight')
    n.drawn(2)
    mouse = n.slide(slider)
    n.drawn(3)
    print(f'\n{board}: first picture {says_drawn}, on the page {first:+.2f} s after its cell; key answered in '
          f'{key:.2f} s, mouse in {mouse:.2f} s', end='')
    if drag:
        src = n.source()
        t = time.perf_counter()
        n.drag(*drag)
        n.redrawn(src)
        print(f', frame in {time.perf_counter()-t:.2f} s', end='')
        n.drawn(4)
        n.page.locator('.jp-Accordion, .widget-accordion, .jupyter-widget-Collapse-header, .p-Collapse-header, '
                       '.lm-Widget >> text=copy as code').last.click()
        assert says in n.page.locator('.jupyter-widgets textarea').last.input_value()
        n.page.locator('.pca-brush').focus()
        n.page.keyboard.press('Escape')
        n.drawn(5)
    n.shot(1280)
    assert n.fits()
    n.narrow()
    assert n.errors() == [] and n.odd == []


def test_a_grid_is_started_watched_and_stopped(open_notebook):
    n = open_notebook('dashboards/b4_runs.ipynb')
    def says(text): return n.page.wait_for_selector(f'.pca-now:has-text("{text}")')
    n.run()
    says('0 of 1 rows')
    src = n.source()
    n.page.locator('.widget-button[title="start"]').click()
    says('random, IPC 1, seed 0')                                # it tells what it does
    n.redrawn(src)                                               # and draws while it does
    n.page.locator('.widget-button[title="stop"]').click()
    says('stopped')
    n.page.locator('.widget-button[title="start"]').click()
    says('1 of 1 rows')
    n.page.wait_for_selector('.jupyter-widgets table >> text=random')
    handle = n.page.locator('.widget-slider .noUi-handle').first
    handle.focus()
    n.page.keyboard.press('ArrowRight')
    says('1 of 2 rows')                                          # another seed: one row is there
    n.shot(1280)
    n.narrow()
    n.finish()


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_a_tutorial_runs_from_top_to_bottom(tutorial, open_notebook):
    n = open_notebook(f'tutorials/{tutorial}.ipynb')
    n.run()
    n.finish()
    n.shot(1280)
    n.narrow()


def test_the_start_page_leads_to_a_board(open_notebook):
    n = open_notebook('start.ipynb')
    n.shot('page')
    n.page.get_by_role('link', name='Score explorer').click()
    n.page.wait_for_selector('.lm-TabBar-tab.lm-mod-current >> text=b1_scores.ipynb')
    n.shot(1280)
    n.narrow()
    assert n.odd == []
