"""The report as one HTML file: pictures and style are in it, and it refers to nothing outside."""

from __future__ import annotations

import base64

from jinja2 import Environment

from retilt.evaluation.views.document import Bullets, Code, Document, Figure, Table, Warned

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 0 auto; max-width: 76rem;
       padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h2 { border-bottom: 1px solid #e4e7eb; padding-bottom: .3rem; }
nav { font-size: .9rem; margin: 1rem 0; } nav a { margin-right: .9rem; white-space: nowrap; } a { color: #0072b2; }
p, li { max-width: 60rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e7eb; text-align: right; vertical-align: top; }
th { background: #f5f7fa; font-weight: 600; } td:first-child, th:first-child, .prose td, .prose th { text-align: left; }
td:first-child { white-space: nowrap; } .prose td:first-child { white-space: normal; min-width: 16rem; }
.prose td:nth-child(2) { font-weight: 600; min-width: 9rem; }
.warning { border-left: 4px solid #d55e00; background: #fff4ec; padding: .6rem 1rem; max-width: 60rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #52606d; font-size: .88rem; max-width: 60rem; }
pre { background: #f5f7fa; padding: .8rem; overflow-x: auto; font-size: .82rem; }
"""

_TEMPLATE = """\
{%- macro show(block) %}
{%- if block is string %}<p>{{ block }}</p>
{%- elif block is table %}
<div class="scroll"><table{% if block.prose %} class="prose"{% endif %}>
<thead><tr>{% for name in block.header %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in block.rows %}{% set i = loop.index0 %}
<tr>{% for text in row %}<td>{% if (i, loop.index0) in block.bold %}<strong>{{ text }}</strong>{% else %}{{ text }}
{%- endif %}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- elif block is figure %}
<figure><img alt="{{ block.caption }}" src="data:image/png;base64,{{ block.png | inline }}">
<figcaption>{{ block.caption }}</figcaption></figure>
{%- elif block is bullets %}<ul>{% for item in block['items'] %}<li>{{ item }}</li>{% endfor %}</ul>
{%- elif block is warned %}<p class="warning"><strong>Warning:</strong> {{ block.text }}</p>
{%- elif block is code %}<pre><code>{{ block.text }}</code></pre>
{%- endif %}
{% endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ document.title }}</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ document.title }}</h1>
{% for block in document.lead %}{{ show(block) }}{% endfor %}
<nav>{% for section in document.sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a> {% endfor %}</nav>
{% for section in document.sections %}
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
{% for block in section.blocks %}{{ show(block) }}{% endfor %}
{% endfor %}
</body>
</html>
"""


def render(document: Document) -> str:
    """HTML of a document; every text is escaped."""
    environment = Environment(autoescape=True)
    environment.filters["inline"] = lambda png: base64.b64encode(png).decode()
    for kind in (Table, Figure, Bullets, Warned, Code):
        environment.tests[kind.__name__.lower()] = lambda block, kind=kind: isinstance(block, kind)
    return environment.from_string(_TEMPLATE).render(document=document, style=_STYLE)
