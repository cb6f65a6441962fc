"""Chat templates that loop for ever, fill the memory, recurse, or reach for Python's insides."""

# ruff: noqa: E501

from __future__ import annotations

BIG = "'0123456789' * 5000"
"""An expression for a text of 50,000 characters."""

LOOPS = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% if b %}{% endif %}{% endfor %}"
    "{% endfor %}",
    "{% for a in range(99999) for b in a %}x{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{% for i in range(9) %}{{ f(n + 1) }}{% endfor %}{% endmacro %}{{ f(0) }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% call f() %}x{% endcall %}{% endcall %}",
    "{% macro f() %}{% call g() %}{% endcall %}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}"
    "{{ f() }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% block a %}{% for i in range(9) %}{{ self.a() }}{% endfor %}{% endblock %}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{% for i in range(99) recursive %}xxxxxxxxxx{{ loop(range(99999)) }}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | sort | first }}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "{% for a in range(99999) %}{% set x = range(99999) | random %}{% endfor %}",
    "{% for a in range(99999) %}{{ 99999 in range(99999) | list }}{% endfor %}",
    f"{{% set t = {BIG} %}}{{% for a in range(99999) %}}{{{{ t.count('x') }}}}{{% endfor %}}",
    f"{{% set t = {BIG} %}}{{% for a in range(99999) %}}{{{{ 'xy' in t }}}}{{% endfor %}}",
    f"{{% set t = {BIG} %}}{{% for a in range(99999) %}}{{{{ t == t[1:] }}}}{{% endfor %}}",
    f"{{% set t = {BIG} %}}{{% for a in range(99999) %}}{{{{ t.upper().lower() | length }}}}{{% endfor %}}",
    f"{{% set t = {BIG} %}}{{% for a in range(99999) %}}{{{{ t.split('0') | length }}}}{{% endfor %}}",
    f"{{% set t = {BIG} %}}{{% for a in range(99999) %}}{{% if t < t ~ 'a' %}}{{% endif %}}{{% endfor %}}",
    "{{ range(99999) | map('string') | map('length') | select | map('string') | join | length }}"
    * 200,
    "{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}",
    "{% for a in cycler(1, 2).next.__self__ or range(99999) %}x{% endfor %}",
    "{% set j = joiner(',') %}{% for a in range(99999) %}{% for b in range(999) %}{{ j() }}"
    "{% endfor %}{% endfor %}",
    "{% for a in messages * 99999 %}{% for b in messages * 99999 %}{% endfor %}{% endfor %}",
]

LARGE = [
    "{{ 'a' * 10000000000 }}",
    "{{ 10000000000 * 'a' }}",
    "{{ ['a'] * 10000000000 }}",
    "{{ 'a' * 9 ** 99 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ (9 ** 999) ** 999 }}",
    "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = [n.x, n.x] | join %}"
    "{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = '%s%s' % (n.x, n.x) %}"
    "{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = '{0}{0}'.format(n.x) %}"
    "{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x | replace('a', n.x) %}"
    "{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x.replace('a', n.x) %}"
    "{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}"
    "{% endset %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x.join('aaaa') %}"
    "{% endfor %}",
    "{% set n = namespace(x=['a']) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set n = namespace(x=['a']) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | tojson }}",
    "{% set n = namespace(x=['a']) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | string | length }}",
    "{% set n = namespace(x={'a': 1}) %}{% for i in range(99) %}{% set n.x = {'a': n.x, 'b': n.x} %}"
    "{% endfor %}{{ n.x ~ '' }}",
    "{% set n = namespace(x=['a']) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ '%s' % [n.x] }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%.10000000000f' % 1.0 }}",
    "{{ '%*d' % (10000000000, 1) }}",
    "{{ '%10000000000s' | format('a') }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{:.10000000000f}'.format(1.0) }}",
    "{{ '{:{w}}'.format(1, w=10000000000) }}",
    "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "{{ 'a'.center(10000000000) }}",
    "{{ 'a' | center(10000000000) }}",
    "{{ 'a'.ljust(10000000000) }}",
    "{{ 'a'.rjust(10000000000) }}",
    "{{ 'a'.zfill(10000000000) }}",
    "{{ '\t'.expandtabs(10000000000) }}",
    "{{ ('\t' * 50000).expandtabs(50000) | length }}",
    "{{ 'a\nb' | indent(10000000000) }}",
    "{{ ('a\n' * 50000) | indent(50000) | length }}",
    f"{{{{ 'a\n' * 1000 | indent({BIG}) }}}}",
    "{{ [1] | batch(10000000000, 'x') | list }}",
    "{{ [1] | slice(10000000000) | list }}",
    "{{ [[1]] | tojson(indent=10000000000) }}",
    "{{ (1).to_bytes(10000000000, 'big') }}",
    f"{{{{ ([{BIG}] * 100000) | join }}}}",
    f"{{{{ ([{BIG}] * 100000) | string }}}}",
    f"{{{{ ([{BIG}] * 100000) | tojson }}}}",
    f"{{{{ (['a'] * 100000) | join({BIG}) }}}}",
    f"{{{{ ({BIG}).join(['a'] * 100000) }}}}",
    f"{{{{ range(100000) | map('string') | join({BIG}) }}}}",
    f"{{{{ ({BIG}).replace('', {BIG}) }}}}",
    f"{{{{ ('a' * 90000) | replace('a', {BIG}) }}}}",
    f"{{{{ ('a' * 90000).translate({{97: {BIG}}}) }}}}",
    f"{{{{ '%(a)s' * 90000 % {{'a': {BIG}}} }}}}",
    f"{{{{ ('{{0}}' * 90000).format({BIG}) }}}}",
    f"{{% for i in range(99999) %}}{{{{ {BIG} }}}}{{% endfor %}}",
    f"{{% set t = {BIG} %}}{{% for i in range(99999) %}}{{{{ t }}}}{{% endfor %}}",
    "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "{% macro f() %}{% for i in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endmacro %}{{ f() }}",
    "{% set x %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "{% filter upper %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endfilter %}",
    f"{{{{ ([[{BIG}] * 300] * 300) | sum(start=[]) | length }}}}",
    f"{{{{ range(100000) | map('replace', '1', {BIG}) | list | length }}}}",
    "{{ ['a'] * 1000 | map('center', 99999) | list }}{{ (['a'] * 99999) | map('center', 99999)"
    " | list | length }}",
    f"{{% set t = {BIG} %}}{{{{ [{', '.join(f't[{i}:]' for i in range(500))}] | length }}}}",
    "{% autoescape true %}{% for i in range(9999) %}{{ '<' * 90000 }}{% endfor %}"
    "{% endautoescape %}",
]

DEEP = [
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ a" + ".b" * 5000 + " }}",
    "{{ 1" + " + 1" * 5000 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "{% for i in [1] %}" * 50 + "x" + "{% endfor %}" * 50,
    "{{ 1" + " if 1 else 1" * 2000 + " }}",
    "{{ x" + " | string" * 2000 + " }}",
    "{{ '" + "a" * 250_000 + "' }}",
    "{% for",
    "{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ 'x' | int('y') + [] }}",
    "{{ messages | map('nothing') | list }}",
]

INSIDES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': ''}) }}",
    "{{ range.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__code__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.clear() }}",
    "{% set messages[0].role = 1 %}",
    "{% include 'chat.py' %}",
    "{% import 'os' as os %}{{ os.system }}",
    "{% extends '/etc/passwd' %}",
    "{{ lipsum(n=100000) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ (messages | groupby('__class__'))[0].grouper.__name__ }}",
    "{{ ''.format.__self__.__class__ }}",
    "{{ ({}.items | string).__class__.__base__ }}",
]

TEMPLATES = {
    f"{kind} {i}": template
    for kind, templates in (
        ("loops", LOOPS),
        ("large", LARGE),
        ("deep", DEEP),
        ("insides", INSIDES),
    )
    for i, template in enumerate(templates)
}
