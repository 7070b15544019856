"Sphinx for the site: what tools/docs.py puts into _proc/ becomes _docs/, with nothing loaded from the network."
from operator import methodcaller
from pathlib import Path

import ziamath
from docutils.nodes import SkipNode
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

project = 'pca_nb'
extensions = ['myst_nb']
exclude_patterns = ['results']
html_theme = 'furo'
html_title = 'pca_nb'
# the font comes with ziamath, which is used for nothing else: formulas look the same wherever they are read
html_static_path = ['style.css', str(Path(ziamath.__file__).parent/'fonts'/'STIXTwoMath-Regular.ttf')]
html_css_files = ['style.css']
html_copy_source = html_show_copyright = html_show_sphinx = False
html_math_renderer = 'mathml'

nb_execution_mode = 'off'
nb_ipywidgets_js = {}                    # its default is a CDN; dashboards show the picture of their pure view
nb_number_source_lines = False
myst_enable_extensions = ['dollarmath']
myst_dmath_double_inline = True          # $$ inside of a paragraph or a quotation
myst_heading_anchors = 6
myst_heading_slug_func = methodcaller('replace', ' ', '-')   # as Jupyter does, so that a link works there and here
suppress_warnings = ['config.cache', 'myst.header', 'toc.empty_glob']   # levels may jump: show_doc always writes ###

log = logging.getLogger(__name__)
latex = LatexToMathML()


def formula(display):
    "What writes a math node as MathML, which browsers draw by themselves; bad LaTeX is a warning, so `-W` refuses it"
    def visit(self, node):
        try:
            math = latex.convert_with_local_state(node.astext(), displaystyle=display)
            self.body.append(f'<div class="math">{math}</div>' if display else math)
        except LatexError as e:
            log.warning('formula %r: %s', node.astext(), e, location=node)
        raise SkipNode
    return visit


def setup(app):
    app.add_html_math_renderer('mathml', (formula(False), None), (formula(True), None))
