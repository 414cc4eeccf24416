"""Makes crates/sterna-hf/tests/fixtures/jinja_probes.json: what Jinja makes of small templates.

Each probe is rendered by the environment that transformers compiles chat templates in, with the
context below. A probe that raises is recorded by the name of its exception. No randomness, no
clock. Run with transformers 4.57 and jinja2 3.1:

    python golden/make_jinja_probes.py
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

FIXTURE = pathlib.Path(__file__).parents[1] / "crates/sterna-hf/tests/fixtures/jinja_probes.json"

CONTEXT = {
    "none": None,
    "s": "Hello, World",
    "empty": "",
    "uni": "h\u00e9llo \u65e5\u672c \U0001f600",
    "quote": "it's \"q\" \\ \n\t\u2028\u00a0\u200b\x07",
    "n": 5,
    "neg": -3,
    "big": 9007199254740993,
    "u64": 18446744073709551615,
    "f": 2.5,
    "whole": 3.0,
    "tiny": 1e-5,
    "small": 0.0001,
    "large": 1e16,
    "huge": 1e20,
    "exact": 12345678901234567.0,
    "third": 0.1,
    "negzero": -0.0,
    "t": True,
    "b": False,
    "list": [3, 1, 2],
    "words": ["b", "A", "c", "a"],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": "v"}],
    "nothing": [],
    "d": {"zeta": 1, "alpha": "x", "Beta": None, "list": [1, 2], "nested": {"deep": {"er": 1}}},
    "void": {},
    "schema": {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}},
            "keys": {"type": "string", "description": "a <b> & 'c'"},
            "values": {"type": ["string", "null"], "enum": ["x", "\u00e9"]},
        },
        "required": ["tags"],
        "items": {"get": 1, "pop": 2},
    },
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?", "name": "U"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "y": [True, None, 1e20]}}}],
        },
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ],
    "people": [
        {"name": "Ann", "age": 30, "city": {"name": "Rome"}},
        {"name": "bob", "age": 25, "city": {"name": "Oslo"}},
        {"name": "Cy", "age": 30},
        {"name": "ann", "age": None},
    ],
    "pairs": [["a", 1], ["b", 2]],
}

# Each line is an expression, rendered between `{{` and `}}`.
EXPRESSIONS = r"""
s % 1
'%s' % 'x'
'%s and %s' % ('a', 1)
'%d items' % 3
'%05.2f|%-6s|%6s|%x|%X|%o|%e|%g|%c|%%' % (3.14159, 'ab', 'cd', 255, 255, 8, 12345.678, 0.0001, 'z')
'%s' % none
'%s' % [1, 'a']
'%s' % {'a': 1}
'%(a)s-%(b)d' % {'a': 1, 'b': 2}
'%r' % 'it'
'%+d % d %i' % (3, 4, 5)
'%s' % (1, 2)
'%s %s' % 'x'
'%d' % 'x'
'%d' % 2.7
'%.3s|%5.1f|%3d|%03d|%-3d|' % ('abcdef', 2.25, 7, 7, 7)
'plain' % []
'plain' % ()
'plain' % 1
'%s' % undefined_name
'%s' % true
'%.2f' % 2
'%5s%%' % 12
7 % 3
-7 % 3
7 % -3
7.5 % 2
-7.5 % 2
7 % 0
7 // 2
-7 // 2
7 // 2.0
7.5 // 2
7 // 0
7 / 2
6 / 3
7 / 0
1 / 3
2 ** 10
2 ** -1
2 ** 0.5
2 ** 3 ** 2
-2 ** 2
(-8) ** 2
2 ** 64
10 ** 30
1 + 2.0
1 + true
true + true
true * 3
-true
1 - 2 - 3
1 - (2 - 3)
2 * 3 + 4 * 5
2 + 3 * 4 - 5
10 - 4 // 3
100 // 7 % 5
2 * 'ab'
'ab' * 0
'ab' * -1
'ab' * 2.0
[1] * 3
3 * [1, 2]
[1] + [2, 'x']
[1] + (2,)
(1,) + (2,)
'a' + 'b'
'a' + 1
1 + 'a'
'a' + none
'a' + undefined_name
undefined_name + 'a'
undefined_name + 1
undefined_name ~ 'a'
'a' ~ undefined_name ~ 'b'
none ~ 1
none + none
{} + {}
'a' - 'b'
[1] - [1]
1 ~ 2 ~ 3
1 ~ 2 + 3
1 + 2 ~ 3
'a' ~ 1.0 ~ 1e20 ~ 1e-5 ~ [1.5, 'x'] ~ none ~ true
'a' ~ 'b' * 2
big + 1
u64
u64 + 1
u64 * 2
9223372036854775807 + 1
f + 1
tiny
small
large
huge
exact
third
third + 0.2
negzero
1e100
1e15
123456789012345680.0
1.0
100.0
1_000
1e5
1.5e-7
0.1 + 0.2
5e-324
-n
+n
- -n
-f
-'a'
+'a'
not n
not empty
not not n
[tiny, huge, exact, 1.0]
{'a': huge, 'b': tiny}
mixed
d
void
nothing
quote
[quote]
[uni]
["it's"]
['say "x"']
['both \' and "']
(1,)
()
(1, 'a')
((1, 2), [3, (4,)])
[()]
{'a': (1, 2)}
{5: 2, 'x': none, true: 3}
{2.5: 1}
[undefined_name]
undefined_name
true
True
None
false
'a' 'b'
'tab\tnew\nline\\ \x41 \u00e9'
1 < 2
1 < 2 < 3
1 < 2 > 5
1 == 1 == 1
1 != 2
'a' < 'b'
'a' < 'B'
'a' < 1
none < 1
none == none
none == false
none == 0
0 == false
1 == true
1 == 1.0
'1' == 1
[1, 2] == [1, 2]
[1, 2] < [1, 3]
(1, 2) == [1, 2]
{'a': 1} == {'a': 1.0}
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
{'a': 1} < {'b': 1}
undefined_name == undefined_name
undefined_name == none
undefined_name < 1
undefined_name != ''
undefined_name == ''
1.5 <= 1.5
true < 2
'a' in s
'Hello' in s
'' in s
'x' not in s
1 in s
none in s
undefined_name in s
'a' in none
'a' in undefined_name
'a' in 5
1 in list
'1' in list
1.0 in list
true in list
none in mixed
'zeta' in d
'x' in d
1 in d
[1] in d
[1] in [[1]]
(1, 2) in [(1, 2)]
not 'a' in s
'role' in messages[0]
'b' in 'abc' and 'x' not in 'abc'
1 and 2
0 and 2
0 or 'x'
'' or none
none or undefined_name
[] or {} or 'last'
'a' if n
'a' if b
'a' if b else 'c'
('a' if b else 'c') ~ 'd'
1 if 0 else 2 if 0 else 3
'a' if undefined_name else 'b'
s[0]
s[-1]
s[100]
s[1:4]
s[-3:]
s[:-3]
s[::-1]
s[::2]
s[5:1]
s[10:1:-2]
s[none:3]
s[::0]
s[1:100]
uni[1]
uni[7:]
uni[-1]
list[0]
list[-1]
list[-4]
list[5]
list[1:]
list[::-1]
list[-2:]
list[::2]
list[true]
list[1.0]
list['x']
list['0']
nothing[0]
nothing[1:]
(1, 2, 3)[1]
(1, 2, 3)[1:]
d['zeta']
d['missing']
d[1]
d[none]
d[[1]]
d.zeta
d.missing
d.missing.more
d['missing']['more']
d.nested.deep.er
d['nested'].deep['er']
none.x
none['x']
n.x
n[0]
s.x
undefined_name.x
undefined_name['x']
undefined_name[0]
list.0
d.list.0
d.list[1]
schema.items is mapping
schema['items'] is mapping
schema['items'].get
schema.properties.tags.items is string
schema.properties.keys is mapping
schema.properties['keys'].description
schema.items() | list | length
schema.keys() | list
schema.properties.items() | map('first') | list
schema.get('items')
schema.values is defined
schema.title is defined
schema.required.count('tags')
s.title is defined
s.nope is defined
list.append is defined
d.update is defined
d.update({})
d.pop('zeta')
d.setdefault('q', 1)
d.clear()
d.popitem()
list.append(1)
list.pop()
list.sort()
list.reverse()
list.extend([1])
list.insert(0, 1)
list.remove(1)
list.index(1)
list.index(9)
list.index(2, 1)
list.count(1)
list.copy()
words.index('c')
mixed.count(1)
mixed.index(none)
(1, 2, 2).count(2)
(1, 2).index(2)
d.copy()
d.get('zeta')
d.get('missing')
d.get('missing', 'dflt')
d.get('missing', none)
d.get('Beta', 'dflt')
d.get()
d.keys()
d.values()
d.items()
void.items()
d.keys() | list
d.values() | list
d.items() | list
d.keys() | length
d.items() | first
d.keys()[0]
'zeta' in d.keys()
1 in d.values()
d.keys() | join(',')
d.keys() | sort
d.items() | sort
d.nope()
s.nope()
n.nope()
undefined_name.nope()
undefined_name()
none()
n()
s.index('l')
s.index('zz')
s.index('o', 5)
s.rindex('o')
s.rindex('zz')
s.find('o')
s.find('o', 5)
s.find('o', 5, 7)
s.find('zz')
s.rfind('o')
s.rfind('o', 0, 6)
s.count('l')
s.count('l', 3)
s.count('')
uni.find('日')
uni.index('日')
s.upper()
s.lower()
s.title()
"it's a dog's life-story x1y".title()
s.capitalize()
'hELLO wORLD'.capitalize()
s.swapcase()
s.casefold()
'ß'.upper()
'ß'.casefold()
'ß x'.title()
'ΑΣ'.lower()
s.center(20)
s.center(21, '*')
s.ljust(15, '.')
s.rjust(15, '.')
s.ljust(3)
'42'.zfill(5)
'-42'.zfill(5)
s.expandtabs()
'a\tb'.expandtabs(4)
s.startswith('He')
s.startswith(('x', 'He'))
s.startswith(['He'])
s.startswith('World', 7)
s.startswith('Hello', 0, 3)
s.startswith(none)
s.startswith(1)
s.endswith('ld')
s.endswith(('x', 'ld'))
s.endswith('Hello', 0, 5)
s.startswith('')
s.replace('l', 'L')
s.replace('l', 'L', 1)
s.replace('', '-')
s.replace('', '-', 3)
s.replace('l', 1)
s.replace('zz', 'y')
s.replace('l', 'L', 0)
s.replace('l', 'L', -1)
s.split()
s.split(',')
s.split(', ')
s.split('l', 1)
s.split(none, 1)
s.split(sep='o')
s.split('o', maxsplit=1)
s.split(maxsplit=0)
s.split('')
s.split(1)
s.rsplit('o', 1)
s.rsplit(maxsplit=1)
' a  b '.split(' ')
''.split()
''.split('x')
'a\nb\r\nc\x0bd\u2028e'.splitlines()
'a\nb\n'.splitlines(true)
'a\nb\n'.splitlines(keepends=true)
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
'abc'.rpartition('=')
'abc'.partition('')
'  x '.strip()
'  x '.lstrip() ~ '|'
'  x '.rstrip() ~ '|'
'xxaxx'.strip('x')
'abcba'.strip('ab')
'  x '.strip(none)
'\u00a0x\u3000'.strip()
'<think>a</think>'.strip('<think>')
'abc'.strip(1)
'abc'.removeprefix('a')
'abc'.removesuffix('c')
'abc'.removeprefix('x')
','.join(['a', 'b'])
','.join('abc')
','.join([1, 2])
','.join(d)
','.join(d.keys())
','.join(['a', none])
','.join([])
','.join(5)
'{} {}'.format('a', 1)
'{0} {1} {0}'.format('a', 'b')
'{a} {b}'.format(a=1, b='x')
'{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}|{:%}'.format('a', 'b', 'c', 42, 3.14159, 1234567, 255, 0.5)
'{{}} {}'.format(1)
'{}'.format(1.0)
'{}'.format(none)
'{}'.format([1, 'a'])
'{!r}'.format('a')
'{0[0]} {1[k]}'.format(['x'], {'k': 'v'})
'{}'.format()
'{:d}'.format('x')
'{:*^9}'.format('mid')
'{:+d} {:e}'.format(5, 12345.678)
'abc'.isalpha()
'ab1'.isalnum()
'123'.isdigit()
'١٢'.isdigit()
'²'.isdigit()
'²'.isdecimal()
'½'.isnumeric()
'½'.isdigit()
'12a'.isdigit()
''.isdigit()
'abc'.islower()
'ABC'.isupper()
'Abc Def'.istitle()
'a1_'.isidentifier()
' \t'.isspace()
'abc'.isascii()
'abc'.isprintable()
''.isalpha()
'日本'.isalpha()
'a'.encode()
'abc'.maketrans('a', 'b')
s.upper
s.__class__
s.__len__()
d.__class__
list.__add__([1])
messages[0].items() | list
s | upper
s | lower
s | title
"it's a dog's life-story" | title
'foo-bar (baz) [qux] <a>' | title
s | capitalize
n | upper
none | upper
s | length
uni | length
list | length
d | length
n | length
none | length
undefined_name | length
undefined_name | count
range(3) | length
list | map('string') | length
true | length
s | first
s | last
list | first
list | last
nothing | first
nothing | last
d | first
d | last
none | first
undefined_name | first
undefined_name | last
n | first
s | reverse
list | reverse | list
d | reverse | list
n | reverse
'12' | int
'x' | int
'x' | int(7)
'x' | int(default=9)
'12.7' | int
12.7 | int
-12.7 | int
none | int
true | int
'0x1f' | int(base=16)
'1f' | int(0, 16)
'ff' | int(5, 16)
'101' | int(0, 2)
' 12 ' | int
'1_000' | int
'' | int
undefined_name | int
[] | int
'1e3' | int
'99999999999999999999' | int
1e20 | int
'inf' | int
'12.5' | float
'x' | float
'x' | float(1.5)
'1e5' | float
12 | float
none | float
true | float
'inf' | float
'nan' | float
undefined_name | float
2.5 | round
3.5 | round
2.675 | round(2)
1234.567 | round(-2)
2.1 | round(method='ceil')
2.9 | round(method='floor')
2.123 | round(2, 'ceil')
3 | round
5 | round(1)
1e20 | round
-0.4 | round
2.5 | round | int
2.5 | round(0, 'nope')
'x' | round
-3 | abs
-3.5 | abs
'x' | abs
true | abs
list | sum
[0.1, 0.2] | sum
list | sum(start=10)
people | sum(attribute='age')
people[:2] | sum(attribute='age')
words | sum
nothing | sum
list | min
list | max
words | min
words | max
words | min(case_sensitive=true)
people[:2] | max(attribute='age')
nothing | min
mixed | max
[1, none] | min
list | sort
list | sort(reverse=true)
words | sort
words | sort(case_sensitive=true)
words | sort(true, true)
people[:3] | sort(attribute='age') | map(attribute='name') | list
people[:3] | sort(attribute='age,name') | map(attribute='name') | list
people[:2] | sort(attribute='city.name') | map(attribute='name') | list
people | sort(attribute='age')
mixed | sort
d | sort
s | sort
none | sort
undefined_name | sort
d | dictsort
d | dictsort(true)
d | dictsort(reverse=true)
{'a': 2, 'b': 1} | dictsort(by='value')
{'a': 2, 'b': 1} | dictsort(false, 'value', true)
{'a': 2, 'b': 1} | dictsort(by='nope')
list | dictsort
d | items | list
undefined_name | items | list
none | items
list | items | list
words | unique | list
words | unique(true) | list
[1, 1.0, true, 2] | unique | list
people | unique(attribute='age') | map(attribute='name') | list
words | join
words | join(', ')
list | join('-')
mixed | join('|')
people | join(', ', attribute='name')
people | map(attribute='name') | join(',')
s | join('.')
none | join
undefined_name | join(',')
[1.0, 1e20, none, true] | join(' ')
d | join(',')
5 | join
words | map('upper') | list
words | map('replace', 'a', 'z') | list
words | map('upper') | map('lower') | join
people | map(attribute='age') | list
people | map(attribute='city.name') | list
people | map(attribute='city.name', default='?') | list
people | map(attribute='zip', default='none') | list
people | map(attribute='zip') | list
pairs | map(attribute=0) | list
pairs | map(attribute='1') | list
pairs | map('first') | list
pairs | map('last') | sum
words | map('nope') | list
words | map() | list
list | map('string') | join
list | map('string') | list
[1, 2] | map('float') | list
['1', 'x'] | map('int', 9) | list
people | selectattr('name') | list | length
people | selectattr('age', 'none') | map(attribute='name') | list
people | selectattr('age') | map(attribute='name') | list
people | selectattr('age', 'equalto', 30) | map(attribute='name') | list
people | selectattr('age', '==', 30) | map(attribute='name') | list
people | selectattr('age', 'eq', 30) | map(attribute='name') | list
people | rejectattr('age', 'ne', 30) | map(attribute='name') | list
people | selectattr('city') | map(attribute='name') | list
people | selectattr('city', 'defined') | map(attribute='name') | list
people | selectattr('city', 'undefined') | map(attribute='name') | list
people | selectattr('city.name', 'equalto', 'Rome') | map(attribute='name') | list
people | selectattr('name', 'in', ['Ann', 'Cy']) | map(attribute='name') | list
people | selectattr('age', '>', 26) | list
people[:3] | selectattr('age', '>', 26) | map(attribute='name') | list
people[:3] | selectattr('age', 'lt', 26) | map(attribute='name') | list
people | rejectattr('city') | map(attribute='name') | list
people | rejectattr('age', 'none') | list | length
people | selectattr('age', 'nope') | list
people | selectattr('name', 'string') | first
messages | selectattr('role', 'equalto', 'user') | list
messages | selectattr('role', 'equalto', 'nope') | first
messages | selectattr('tool_calls', 'defined') | list | length
messages | selectattr('role', 'equalto', 'tool') | map(attribute='content') | first
messages | map(attribute='role') | unique | join(' ')
messages | map(attribute='content') | select('string') | join(' ')
messages | map(attribute='content') | reject('none') | list | length
list | select('odd') | list
list | reject('odd') | list
list | select('greaterthan', 1) | list
list | select('>', 1) | list
list | select('in', [1, 2]) | list
mixed | select | list
mixed | reject | list
mixed | select('string') | list
mixed | select('number') | list
mixed | select('mapping') | list
list | select('divisibleby', 3) | list
'yes' if (messages | selectattr('role', 'equalto', 'nope')) else 'no'
'yes' if (messages | selectattr('role', 'equalto', 'nope') | list) else 'no'
'yes' if (nothing | map('upper')) else 'no'
'yes' if range(0) else 'no'
'yes' if void.items() else 'no'
people | groupby('age') | list
people[:3] | groupby('age') | map('first') | list
people[:3] | groupby('age') | map(attribute='grouper') | list
people[:3] | groupby('age') | map(attribute='list') | map('length') | list
people[:3] | groupby(attribute='city.name', default='x') | map('first') | list
words | groupby('nope') | list
[1, 2, 3, 4, 5] | batch(2) | list
[1, 2, 3, 4, 5] | batch(2, 'x') | list
[1, 2, 3, 4, 5] | slice(2) | list
[1, 2, 3, 4, 5] | slice(3, 'x') | list
undefined_name | default('x')
undefined_name | default
none | default('x')
none | default('x', true)
'' | default('x')
'' | default('x', true)
'' | default('x', boolean=true)
0 | default(5, true)
undefined_name.foo | default('x')
d.missing | default('x')
d.missing | d('x')
d.missing.more | default('x')
undefined_name | default(default_value='z')
'  x ' | trim
'xxax' | trim('x')
none | trim
5 | trim
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2)
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, first=true, blank=true)
'a\nb\n\nc' | indent(2, true, true)
'a\nb' | indent('> ')
'a\nb' | indent(width='> ', first=true)
none | indent
'a\r\nb' | indent(1)
s | replace('l', 'L')
s | replace('l', 'L', 1)
s | replace('l', 'L', count=2)
s | replace('', '-')
5 | replace('5', 'x')
none | replace('N', 'x')
s | wordcount
'a-b c_d, e.f' | wordcount
'one two three four five' | wordwrap(9)
'averylongwordhere x' | wordwrap(5)
'averylongwordhere x' | wordwrap(5, false)
'a b c' | wordwrap(3, wrapstring='|')
s | truncate(8)
'one two three four' | truncate(9)
'one two three four' | truncate(9, true)
'one two three four' | truncate(9, true, '..', 0)
s | center(20)
s | string
5 | string
none | string
1e20 | string
[1, 'a'] | string
5 | string + 'x'
s | list
d | list
range(3) | list
none | list
undefined_name | list
5 | list
(1, 2) | list
'<a & b>"\'' | escape
'<a>' | e
'<a>' | safe
5 | safe
'<a>' | forceescape
'<p>Hello  <b>x</b></p>' | striptags
'a b/c?d=é' | urlencode
{'a': 1, 'b': 'x y'} | urlencode
{'class': 'x', 'id': none, 'n': 1} | xmlattr
1000 | filesizeformat
1234567 | filesizeformat
1234567 | filesizeformat(true)
'%s-%s' | format('a', 1)
'%(x)s' | format(x=5)
'%d' | format('x')
s | pprint
d | attr('zeta')
s | attr('upper')
list | random is number
d | nofilter
s is nope
s | tojson
uni | tojson
quote | tojson
d | tojson
d | tojson(indent=2)
d | tojson(indent=none)
d | tojson(indent=0)
d | tojson(2)
d | tojson(indent='--')
d | tojson(sort_keys=true)
d | tojson(separators=(',', ':'))
d | tojson(separators=(',', ':'), indent=1)
uni | tojson(ensure_ascii=true)
uni | tojson(true)
mixed | tojson
[1e20, 1e-5, 1.0, 0.1, 1e16, 12345678901234567.0, 5e-324] | tojson
u64 | tojson
2 ** 70 | tojson
negzero | tojson
{5: 2, none: 3, true: 4, 2.5: 5} | tojson
{(1, 2): 3} | tojson
(1, 2) | tojson
undefined_name | tojson
none | tojson
range(3) | tojson
d.items() | tojson
d.items() | list | tojson
words | map('upper') | tojson
words | map('upper') | list | tojson
schema | tojson
schema.properties | tojson(indent=4)
messages | tojson
'<&\'>' | tojson
['a', {}, [], {'x': []}] | tojson(indent=2)
d.keys | tojson
(d | tojson) is string
(d | tojson) ~ '<'
[d | tojson]
none is none
none is iterable
none is sequence
none is mapping
none is defined
none is string
none is number
undefined_name is iterable
undefined_name is sequence
undefined_name is mapping
undefined_name is none
undefined_name is defined
undefined_name is undefined
s is iterable
s is sequence
s is string
s is mapping
n is iterable
n is sequence
n is number
n is integer
n is float
f is number
f is integer
f is float
true is number
true is integer
true is float
true is boolean
1 is boolean
1 is true
true is true
0 is false
false is false
list is iterable
list is sequence
list is mapping
d is iterable
d is sequence
d is mapping
(1, 2) is sequence
(1, 2) is iterable
range(3) is sequence
range(3) is iterable
d.items() is iterable
d.items() is sequence
d.items() is mapping
d.keys() is iterable
words | map('upper') is iterable
(words | map('upper')) is iterable
(words | map('upper')) is sequence
range is callable
s.upper is callable
s is callable
4 is even
3 is even
3 is odd
3.0 is odd
'x' is even
none is odd
6 is divisibleby 3
6 is divisibleby(4)
6 is divisibleby 0
'abc' is lower
'ABC' is upper
'a1' is lower
5 is upper
1 is sameas 1
none is sameas none
true is sameas true
true is sameas 1
1 is eq 1.0
1 is equalto 1
1 is ne 2
1 is lt 2
1 is le 1
1 is gt 0
1 is ge 1
1 is in [1]
'a' is in 'abc'
1 is not none
undefined_name is not defined
d.zeta is defined
d.missing is defined
d['x'] is defined and d['x'] is not none
'x' is escaped
('x' | safe) is escaped
'upper' is filter
'nope' is filter
'even' is test
n is not string and n is number
not n is string
s is string and s is not mapping
1 is number == true
-1 is number
range(5) | list
range(1, 4) | list
range(5, 0, -2) | list
range(0)
range(1, 4)
range(3)[1]
range(2, 8)[1:3]
range('x')
range(1.5)
range()
1 in range(3)
range(3) == range(3)
dict(a=1, b='x')
dict({'a': 1}, b=2)
dict(pairs)
dict()
dict(a=1).a
namespace(a=1).a
namespace(a=1).b is defined
namespace({'a': 1}).a
namespace(a=1) is mapping
lipsum is defined
cycler is defined
joiner is defined
debug is defined
self is defined
loop is defined
caller is defined
varargs is defined
raise_exception('x')
raise_exception is callable
strftime_now('%%')
s.format(1)
'a'.join
[1, 2, 3]|length > 2
n|string ~ '!'
-n|abs
-5|abs
n + '3'|int
'a' ~ n|string|upper
2 * n|float
n is odd and n > 3 or b
n == 5 and 'y' or 'z'
(n > 3) ~ ''
[1, 2][0] ~ [3, 4][-1]
{'a': {'b': [1, 2]}}.a.b[1]
{'a': 1}['a']
'abc'[1]
('a', 'b')[0]
[x for x in list]
lambda x: x
n if
)
{'a': 1, }
[1, 2, ]
(1, 2, )
{'a' 1}
'unclosed
s.split(',')[1].strip().upper()
s.split(',') | map('trim') | list
(s | upper).lower()
s | upper | lower | title
messages[-1]['content'].split(' ')[-1].rstrip('.')
messages[2].tool_calls[0].function.arguments | tojson
messages[2].tool_calls[0]['function']['name']
messages[2].content is none
messages[2].content or 'x'
messages[0].content + '!'
messages[2].content + '!'
messages[1:] | length
messages[::-1][0].role
messages[0] == messages[0]
messages | length - 1
messages[n - 1].role
messages[messages | length - 1].role
messages[-2:] | map(attribute='role') | list
messages.0.role
messages | last
(messages | last).role
(messages | first)['role']
messages[0].role == 'system' and messages[0]['content'] is string
n is defined and n is not none and n | string == '5'
s is string or s is iterable and s is not mapping
d | list | first
d | length + 1
d.values() | select('none') | list
d.items() | map('last') | select('number') | list
d.items() | selectattr(0, 'equalto', 'zeta') | list
d.items() | rejectattr('0', 'equalto', 'zeta') | map(attribute=0) | list
dict(d.items() | rejectattr('0', 'equalto', 'zeta')) | tojson
dict(d, **{'zeta': 9}).zeta
'%s' | format(none)
'{}' ~ '{}'
'{{' ~ '}}'
'%}'
"{# no comment #}"
'a' if 'b' in {'b': 1} else 'c'
1 in [1] == true
1 == 1 in [true]
'a' < 'b' < 'c'
3 > 2 >= 2 != 1
n.bit_length()
n.real
f.is_integer()
f.hex()
1.0.is_integer()
true.real
s.__doc__ is defined
"\N{BULLET}"
'\d \q \/'
'\101'
"a\
b"
'end' ~ '\n' ~ 'x'
1.
.5
1e400
-1 ** 2
0x1f
0b101
0o17
1__0
not 1 == 2
not true in [false]
n and s and list and 'z'
(none)
((1))
((), (1,), [])
[[]]
[{}]
{}
{'k': [{'a': none}]}
1, 2
1,
'\U0001f600 \a|\v|\b|\f|\0' | tojson
'\x4'
'\u12'
"\"\'" ~ '\"\''
d['items']() | list | length
d['get']('zeta')
d['get']
messages[0]['keys'] is defined
messages[0]['nope'] is defined
schema['items']['get']
schema['properties']['tags']['items']['type']
schema.properties.tags['items'].type
schema['values'] is defined
list['append'] is defined
s['upper'] is defined
s['upper']()
s[n]
s[n:]
s[:n] ~ s[n:]
s[n - 1:n + 1]
s[-n:]
s[n:n]
s['0']
s[none]
list[n - 4]
list[-n]
list[neg]
list[n - 4:]
d['alp' ~ 'ha']
d['alpha'] + 'x'
d[s]
messages[0]['content'][0]
messages[0].content[-1:]
messages[0]['content'] | upper
-n ** 2
2 ** -n
not -n
-d.zeta
-list[0]
-s | length
+s
- 5
-5.5
n -1
n-1
n - -1
n--1
n+-1
n*-1
n if n else
(n if b) is defined
n | default(1) + 1
[n, *list]
f'x'
'a' | upper ~ 'b' | upper
d.items() | list | length > 2 and n
(d.items() | list)[0][1]
d | items | first | last
'x'.join(list | map('string'))
list | length == 3
list | length in [3]
not list | length == 3
'a' in {'a': 1}.keys()
'a' in 'abc' in ['abc']
1 < 2 == true
none is not none
n is defined and n is number
n is number and n is not string
'%s' % n ~ 'x'
'%s, %s' % (n, s) | upper
('%s' % n) | int + 1
'%s' % d.items
'%-10s|' % s[:3]
'%3d%%' % 50
'%s' % (none,)
'%s' % ((1, 2),)
'%(a)s' % {'b': 1}
'%z' % 1
'%' % 1
'%(a' % {'a': 1}
'%c' % 'ab'
'%x' % 1.5
'%i' % true
'%5.1f|%-8.3e|%+g' % (2.25, 12345.678, 0.5)
'%g %g %g %g' % (1e20, 1e-5, 100000, 1000000)
'%.10g' % 0.1
'%f' % 1e20
'%s' % 1e20
'%e' % 0
'%#x %#o' % (255, 8)
'%*d' % (5, 42)
'{:g} {:e} {:f} {:.3} {:.0f}'.format(1e20, 1.5, 2.0, 3.14159, 2.5)
'{:,} {:_} {:,.2f}'.format(1234567, 1234567, 1234567.891)
'{:<8}|{:>8}|{:^8}|'.format(1, 2, 3)
'{:08.3f} {:+} {: }'.format(3.14159, 5, 5)
'{:#x} {:#b} {:o} {:X}'.format(255, 5, 8, 255)
'{:s}'.format(5)
'{:d}'.format(5.0)
'{:5}|{:5}'.format('ab', true)
'{0} {}'.format(1, 2)
'{} {0}'.format(1, 2)
'{a.b}'.format(a={'b': 1})
'{'.format(1)
'}'.format(1)
'{:{}}|'.format('x', 5)
'{!s} {!a}'.format('é', 'é')
'{:10.3}|'.format('abcdef')
'{:.2%}'.format(0.1234)
'{:e}'.format(1e-10)
'{:.1f} {:.1f} {:.1f}'.format(0.25, 0.35, -0.05)
'{:n}'.format(5)
s.split(' ', 0)
s.split('l', -1)
s.rsplit('l', 1)
s.split(', ')[-1]
s.split('\n')
'a,,b'.split(',')
',a,'.split(',')
'a b'.split(sep=none)
'aXbXc'.split('X', maxsplit=1)
'  a  b '.rsplit(none, 1)
'a\n\nb'.split('\n\n')
'</think>a</think>b'.split('</think>')[-1].lstrip('\n')
'</think>a</think>b'.split('</think>')[0].split('<think>')[-1]
'abc'.find('')
'abc'.find('', 5)
'abc'.rfind('')
'abc'.count('', 1)
'abcabc'.count('bc', -3)
'aaa'.count('aa')
'abc'.index('')
'abc'.startswith(('a',))
'abc'.startswith(())
'abc'.startswith()
'abc'.endswith('bc', 1)
'abc'.strip('')
'abc'.upper(1)
'abc'.join('-')
'-'.join(('a', 'b'))
'-'.join(d)
'-'.join(words | sort)
'-'.join(none)
'a-b'.replace('-', '')
'a-b'.replace(old='-', new='')
'a-b'.replace('-')
'É'.lower()
'straße'.upper()
'İ'.lower() | length
'ŉ'.capitalize()
'ab cd'.title().swapcase()
'x' | center(5) ~ '|'
words | sort(reverse=true) | list
words | sort(attribute='nope')
[[2, 'b'], [1, 'a']] | sort | list
[[2, 'b'], [1, 'a']] | sort(attribute=1) | list
[(2, 'b'), (1, 'a')] | sort | list
['b', 'B', 'a'] | sort
['b', 'B', 'a'] | sort(case_sensitive=true)
[true, 2, 0] | sort
[2.5, 1, 3] | sort
[[1], ['a']] | sort
people | sort(attribute='name') | map(attribute='name') | join(' ')
people | map('attr', 'name') | list
people | map(attribute='city') | list
people | map(attribute='city', default={}) | list
people | map(attribute='city.name.deep', default='?') | list
people | map(attribute='name') | map('upper') | list
people | map(attribute='name') | map('replace', 'n', 'm') | join
people | map('length') | list
people | map('dictsort') | first
people | selectattr('age', 'ge', 30) | list | length
people | selectattr('nope.more') | list
people | sum(attribute='age')
people | map(attribute='age') | select | sum
people | groupby('name') | map('first') | list
people[:3] | groupby('age') | list
list | map('abs') | max
words | map('first') | unique | list
words | min(attribute='x')
{'a': 1} | map('upper') | list
d | select('in', ['zeta']) | list
d | join('-')
d | sort(case_sensitive=true)
s | map('upper') | join
s | select('in', 'lo') | join
s | unique | join
s | batch(5) | map('join') | list
s | list | length
s | join('-')
5 | map('upper') | list
none | map('upper') | list
none | select | list
undefined_name | map('upper') | list
undefined_name | selectattr('x') | list
undefined_name | join
undefined_name | upper
undefined_name | trim
undefined_name | tojson
undefined_name | string
undefined_name | replace('a', 'b')
undefined_name | reverse | list
undefined_name | dictsort
undefined_name | sum
undefined_name | min
undefined_name | unique | list
undefined_name | round
undefined_name | abs
undefined_name.x | default('y')
undefined_name is string
undefined_name is number
undefined_name in [1]
undefined_name == 1
undefined_name and 1
undefined_name or 1
not undefined_name
undefined_name[0] | default('y')
undefined_name + undefined_name
undefined_name * 2
-undefined_name
undefined_name < undefined_name
undefined_name | length > 0
none | length > 0
none | upper
none | trim
none | string | length
none | default('x', true) | upper
none + 'a'
none ~ none
none < none
none > 1
none in [none]
none in d
none == undefined_name
none | join(',')
none | first
none | list
none | sum
none | int(5)
none[0]
none['a'] is defined
none.a.b
true + 1
true == 1
true ~ 1
true in [1]
true | int
true | string
true | tojson
true | upper
true is number
true is string
true is sameas(1)
[true, none] | tojson
1 == 1.0 and 1.0 is float
1e3 | int
1.0 | int
1.5 | string
1.0 | tojson
100000000000000000000
100000000000000000000 | tojson
100000000000000000000 + 1
170141183460469231731687303715884105727
0.1 + 0.7
1e16 + 1
1e22
1e21 | tojson
123456789.123456789
1.10
1e-4
1e-7
-1e-7
0.00001234
3 / 1
7 // -2
-7 // -2
7 % -2.5
0 * -1.0
1e308 * 10
-(1e308 * 10)
2 ** 0.5 * 2 ** 0.5
10 % 3 * 2
10 - 2 - 3 + 1
2 * 3 % 4
'a' * 3 ~ 'b'
'a' + 'b' * 2 + 'c'
'a' ~ 1 + 2
1 + 2 == 3 and 'a' ~ 'b' == 'ab'
not 1 + 1 == 2
[1, 2] + [3] == [1, 2, 3]
[1] + none
[[1]] * 2
(1, 2) * 2
(1, 2) + [3]
{'a': 1}.items() | list + [1]
d.keys() | list + ['x']
d.keys() + ['x']
messages | length % 2 == 1
loop.index
range(3)[-1]
range(3)[5]
range(10)[2:4] | list
range(3) | sum
range(3) | reverse | list
range(3) | map('string') | join
range(3) | last
range(0, 10, 3) | list
range(n) | length
range(-1) | list
range(3) == [0, 1, 2]
range(3) is mapping
2 in range(0, 10, 3)
namespace(a=1, b=2).b
namespace(items=1).items
namespace(a=1)['a']
namespace(a=1).get is defined
namespace() is defined
dict(a=1) == {'a': 1}
dict([('a', 1)])
dict([['a', 1]], b=2)
dict(['ab'])
dict(1)
dict(d).zeta
dict(d, zeta=5).zeta
(d.items() | list) + [('x', 1)] | length
joiner('x')() ~ 'y'
cycler(1, 2).current
cycler()
empty[::-1]
nothing[::-1]
messages[:0][::-1]
n[1:]
d[1:]
s['a':]
none[1:]
undefined_name[1:]
range(2, 8)[::-1]
range(9)[::-2] | list
s[::-2]
s[-100:100:3]
s[1:3:none]
(1, 2, 3)[::-1]
list[5:]
list[:-5]
list[2:0:-1]
list[0:2:-1]
[] + range(3)
1 < 2 < 'a'
2 < 1 < 'a'
2 in [1] in undefined_name.x
'l' % undefined_name
words | truncate(9)
n | truncate
mixed | unique | list
undefined_name is callable
""".strip("\n")

# Whole templates, for statements and whitespace.
TEMPLATES = [
    "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% for x in [1, 2] + [3] if x != 2 %}{{ x }}{% endfor %}",
    "{% for x in (messages if n else nothing) %}{{ x.role }}{% endfor %}",
    "{% for x in messages[1:] if x.role != 'tool' and x.content %}{{ x.content }}{% endfor %}",
    "{% for k, v in d.items() if v is not none %}{{ k }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in messages | selectattr('role', 'equalto', 'tool') | list %}{{ loop.length }}{% endfor %}",
    "{% for x in words | map('upper') if x != 'A' %}{{ x }}{{ loop.index }}{{ loop.last }}{% endfor %}",
    "{% for x in d.values() %}{{ loop.length }}{{ loop.last }}{% endfor %}",
    "{% for x in [[1, [2, [3]]], [4]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    "{% for x in list %}{% for y in list %}{% if y == x %}{% break %}{% endif %}{{ y }}{% endfor %};{% endfor %}",
    "{% for x in list %}{{ loop['index'] }}{{ loop.get is defined }}{{ loop.items is defined }}{% endfor %}",
    "{% for x in list %}{{ loop is mapping }}{{ loop is defined }}{{ loop.index + 1 }}{{ loop.index0 % 2 == 0 }}{% endfor %}",
    "{% for x in list %}{{ '%d: %s' % (loop.index, x) }}{% endfor %}",
    "{% for x in list %}{{ 'no' if loop.index0 > 0 and loop.previtem > x else 'yes' }}{% endfor %}",
    "{% for m in messages %}{{ (loop.nextitem or {}).get('role') }},{% endfor %}",
    "{% for m in messages %}{% if loop.previtem and loop.previtem.role == 'user' %}{{ m.role }}{% endif %}{% endfor %}",
    "{% set x = 1, %}{{ x }}",
    "{% set x = (1) %}{{ x }}",
    "{% set x = n if n else 0 %}{{ x }}",
    "{% set x = {'a': 1,\n  'b': [1,\n 2]} %}{{ x.b | last }}",
    "{% set x, y = d.zeta, d.alpha %}{{ x }}{{ y }}",
    "{% set ns = namespace(a=0) %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}",
    "{% set ns = namespace(a={'b': 1}) %}{{ ns.a.b }}{{ ns.a.items() | list }}",
    "{% set ns = namespace(msgs=messages) %}{% set ns.msgs = ns.msgs[1:] %}{{ ns.msgs | length }}{{ ns.msgs[0].role }}",
    "{% set key = 'items' %}{{ d[key] is defined }}{{ schema[key] is mapping }}",
    "{% set key = 'nope' %}{{ d[key] is defined }}",
    "{% set x = 'a' %}{% set x = x ~ 'b' %}{% set x = x + 'c' %}{{ x }}",
    "{% set found = [] %}{% for m in messages %}{% set found = found + [m.role] %}{% endfor %}{{ found }}",
    "{% set t %}{% for x in list %}{{ x }}{% endfor %}{% endset %}{{ t + '!' }}",
    "{% set t = '' %}{% if t %}x{% elif not t and n %}y{% endif %}",
    "{% macro m(a, b=a, c=b) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(1, c=3) }}{{ m(1, none) }}",
    "{%- macro m(a, b=a ~ 'x') -%}\n {{ b }}\n{%- endmacro -%}\n{{ m('q') }}",
    "{% macro m() %}{{ varargs | length }}{{ kwargs | length }}{% endmacro %}{{ m() }}{{ m(1, a=2) }}{{ m(*[1, 2], **{'z': 1}) }}",
    "{% macro m(a) %}{{ a }}{% if varargs %}{{ m(*varargs) }}{% endif %}{% endmacro %}{{ m(1, 2, 3) }}",
    "{% macro m(a, x=0) %}{{ a }}{{ x }}{{ kwargs }}{{ caller() if caller else '' }}{% endmacro %}{{ m(1, y=2) }}{% call m(1, x=5, z=3) %}in{% endcall %}",
    "{%- macro m(a) %}\n{{ kwargs.get('k', 'none') }}\n{%- endmacro -%}\n[{{ m(1, k=2) }}][{{ m(1) }}]",
    "{% macro outer() %}{% macro inner(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ inner(1, 2) }}{% endmacro %}{{ outer() }}",
    "{% macro m(a) %}{{ a.items() | list if a is mapping else a }}{% endmacro %}{{ m({'x': 1}) }}{{ m(5) }}{{ m('s') }}",
    "{% macro m(p, d=0) %}{{ '  ' * d }}{{ p.type }}{% if p.properties %}{% for k, v in p.properties.items() %}\n{{ '  ' * (d + 1) }}{{ k }}:{{ m(v, d + 1) }}{% endfor %}{% endif %}{% endmacro %}{{ m(schema) }}",
    "{% macro m(x) %}{% for i in range(x) %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% endfor %}{% endmacro %}{{ m(5) }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{% set f = m %}{{ f(3) }}{{ words | map('upper') | map('lower') | join }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{% set d2 = {'f': m} %}{{ d2.f(3) }}{{ d2['f'](4) }}",
    "{% macro m(first, last) %}{{ first }}{{ last }}{% endmacro %}{{ m(last=1, first=2) }}",
    "{% macro m() %}{{ messages | length }}{{ raise_exception('x') if b }}{% endmacro %}{{ m() }}",
    "{% call(x) nope.m() %}{% endcall %}",
    "{% with x = n + 1 %}{{ x }}{% with x = x * 2 %}{{ x }}{% endwith %}{{ x }}{% endwith %}",
    "{% filter replace('a', 'b') | upper %}a{{ 'a' ~ n }}{% endfilter %}",
    "{% if n == 5 %}{% set z = 1 %}{% else %}{% set z = 2 %}{% endif %}{{ z }}",
    "{% if n is defined and n > 3 or b %}x{% endif %}",
    "{% if not (n and b) %}x{% endif %}{% if 'a' not in 'xyz' and not b %}y{% endif %}",
    "{% if messages[0]['role'] == 'system' and messages[0]['content'] != '' %}x{% endif %}",
    "{% if (messages[-1]['tool_calls'] or messages[2]['tool_calls']) is not none %}x{% endif %}",
    "{% if messages[2].tool_calls[0].function.arguments is mapping %}x{% else %}y{% endif %}",
    "{% if 'tool_calls' in messages[2] and messages[2]['tool_calls'] is sequence %}x{% endif %}",
    "{% if messages[0].get('content') and messages[0].get('nope') is none %}x{% endif %}",
    "{%- if true -%}\n\n  x  \n\n{%- endif -%}\n\n y",
    "{#- a -#} x {#- b -#}\n y {# c -#}\n z",
    "  {%- set x = 1 -%}  \n  {{- x -}}  \n  .",
    "{% raw -%}  x  {%- endraw %}  y",
    "{%+ if true %} x{%+ endif %}\n{%- if true +%}\n y{% endif %}",
    "{{ 'a' }}  {#  #}  \n{{ 'b' }}\n  {#  #}\n{{ 'c' }}",
    "{{ '{%' }}{{ '%}' }}{{ '{#' }}{{ '#}' }}{{ \"}}\" }}",
    "{{ {'}}': '%}'} }}{% set x = {'%}': 1} %}{{ x }}",
    "{%- for x in [{'a': {'b': 1}}] -%}{{ x.a.b }}{{ {'c': {'d': x.a}}['c']['d'] }}{%- endfor -%}",
    "{{ {'a': 1}.a }}{{ {'a': {}}.a }}{{ {}|length }}{{ {} }}}",
    "{{ d . zeta }}{{ d\n.alpha }}{{ d [ 'zeta' ] }}{{ s . upper ( ) }}",
    "{{ n|string|length }}{{n|float|int}}{{n is odd}}",
    "{% set \u00e9t\u00e9 = 1 %}{{ \u00e9t\u00e9 }}",
    "{% set _ = 1 %}{{ _ }}{% set __x = 2 %}{{ __x }}",
    "{% set items = [1] %}{{ items }}{% for items in [2] %}{{ items }}{% endfor %}{{ items[0] }}",
    "{% set if_x = 1 %}{{ if_x }}{% set not_y = 0 %}{{ not not_y }}{{ in_z is defined }}",
    "{{ strftime_now('%Y') | length }}{{ strftime_now is defined }}{{ strftime_now('x') }}",
    "{%- if strftime_now is defined %}{%- set date = 'd' %}{%- else %}{%- set date = '26 Jul 2024' %}{%- endif %}{{ date }}",
    "{% for x in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for x in list %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}|{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}",
    "{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }},{% endfor %}",
    "{% for x in list %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in list %}{{ loop.cycle() }}{% endfor %}",
    "{% for x in list %}{{ loop.nope }}{% endfor %}",
    "{% for x in list %}{{ loop }}{% endfor %}",
    "{% for x in list %}{% for y in words %}{{ loop.index0 }}{{ loop.depth }}{% endfor %}{{ loop.index0 }};{% endfor %}",
    "{% for x in list %}{% set outer = loop %}{% for y in words %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in nothing %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in list if x > 1 %}{{ x }}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}",
    "{% for x in list if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in undefined_name %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in none %}{{ x }}{% endfor %}",
    "{% for x in 5 %}{{ x }}{% endfor %}",
    "{% for x in s %}{{ x }}.{% endfor %}",
    "{% for x in d %}{{ x }}.{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{{ loop.last }}{% endfor %}",
    "{% for k, v in d | items %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in undefined_name | items %}{{ k }}{% endfor %}",
    "{% for k, v in d %}{{ k }}{% endfor %}",
    "{% for k, v in pairs %}{{ k }}{{ v }}{% endfor %}",
    "{% for k, v in ['ab', 'cd'] %}{{ k }}{{ v }}{% endfor %}",
    "{% for (a, b), c in [[[1, 2], 3]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% endfor %}",
    "{% for x in words | map('upper') %}{{ x }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "{% for x in messages | selectattr('role', 'equalto', 'user') %}{{ x.content }}{{ loop.index }}{% endfor %}",
    "{% for x in list | reverse %}{{ x }}{{ loop.last }}{% endfor %}",
    "{% for a in people | groupby('city.name', 'none') %}{{ a.grouper }}:{% for p in a.list %}{{ p.name }}{% endfor %};{% endfor %}",
    "{% for g, ps in people[:3] | groupby('age') %}{{ g }}:{{ ps | map(attribute='name') | join(',') }};{% endfor %}",
    "{% for r in [1, 2, 3, 4, 5] | batch(2, 0) %}{{ r | join('-') }};{% endfor %}",
    "{% for x in [{'v': 1, 'c': [{'v': 2, 'c': []}]}] recursive %}{{ x.v }}{{ loop.depth }}{{ loop(x.c) }}{% endfor %}",
    "{% set x = 0 %}{% for y in list %}{% set x = x + y %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% if true %}{% set q = 2 %}{% endif %}{{ q }}",
    "{% for y in list %}{% set z = y %}{% endfor %}{{ z is defined }}",
    "{% for n in list %}{% endfor %}{{ n }}",
    "{% set ns = namespace(x=0) %}{% for y in list %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}{{ ns['a'] }}",
    "{% set ns = namespace(items=[]) %}{% set ns.items = ns.items + [1] %}{{ ns.items }}",
    "{% set ns = namespace(x={}) %}{% set ns.x = dict(ns.x, a=1) %}{{ ns.x }}",
    "{% set d.zeta = 2 %}{{ d.zeta }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [1, 2] %}{{ a }}{{ b }}",
    "{% set a, b = [1] %}{{ a }}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set x %}  a {{ n }}\n{% endset %}[{{ x }}]{{ x | length }}{{ x is string }}",
    "{% set x | upper %}abc{% endset %}{{ x }}",
    "{% set x | replace('a', 'b') | upper %}abc{% endset %}{{ x }}",
    "{% set true = 1 %}",
    "{% filter upper %}abc {{ s }}{% endfilter %}",
    "{% filter trim | upper %}  abc {% endfilter %}|",
    "{% filter indent(2) %}a\nb{% endfilter %}",
    "{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q is defined }}",
    "{% macro m(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(a=3, b=4) }}{{ m(1, b=5) }}{{ m() }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}",
    "{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m(1, x=2, y='z') }}",
    "{% macro m(a) %}{{ a }}{% for k, v in kwargs.items() %}{{ k }}={{ v }};{% endfor %}{% for v in varargs %}{{ v }}{% endfor %}{% endmacro %}{{ m(1, 2, x=3) }}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, x=2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m(a=n, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m() }}{{ m(7) }}",
    "{% macro m(a, b) %}{{ a }}{{ b is defined }}{% endmacro %}{{ m(1) }}{{ m(1, none) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(**{'a': 1}) }}{{ m(*[2]) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{{ n }}{% endcall %}",
    "{% macro m() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b) m() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% if caller %}y{% endif %}{% endmacro %}{{ m() }}{% call m() %}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}",
    "{% macro m(k) %}{% if k > 0 %}{{ k }}{{ m(k - 1) }}{% endif %}{% endmacro %}{{ m(4) }}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
    "{% macro m() %}{{ n }}{{ q }}{% endmacro %}{% set q = 3 %}{{ m() }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% for x in list %}{{ m() }}{% endfor %}|",
    "{% macro m() %}{% set n = 9 %}{{ n }}{% endmacro %}{{ m() }}{{ n }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m('a') ~ m('b') }}{{ m('a') | upper }}{{ m('abc') | length }}{{ m('a') == 'a' }}",
    "{% macro m(x) -%}\n  {{ x }}\n{%- endmacro %}\n{{ m(1) }}\n{{ m(2) }}",
    "{% macro m(x) %}{{ loop is defined }}{% endmacro %}{% for a in [1] %}{{ m(1) }}{% endfor %}",
    "{% macro m(a, b=1, c=2) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(0, c=9) }}",
    "{{ m }}{% macro m() %}{% endmacro %}",
    "{% macro m(a) %}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m is callable }}",
    "{% if n > 3 %}a{% elif n > 1 %}b{% else %}c{% endif %}",
    "{% if undefined_name %}a{% elif none %}b{% else %}c{% endif %}",
    "{% if undefined_name.x %}a{% endif %}",
    "{% if not messages %}a{% endif %}b",
    "{% if d %}a{% endif %}{% if void %}b{% endif %}{% if 0.0 %}c{% endif %}{% if '0' %}d{% endif %}",
    "{% if messages | selectattr('role', 'equalto', 'nope') %}yes{% endif %}",
    "{% set g = words | map('upper') %}{{ g | list }}{{ g | list }}",
    "{% set g = list | select('odd') %}{{ g | first }}{{ g | first }}{{ g | first is defined }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set _ = c.reset() %}{{ c.next() }}",
    "{% set c = cycler('a', 'b') %}{{ c() }}",
    "{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b",
    "{% set j = joiner() %}{{ j() }}a{{ j() }}b",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% include 'x' ignore missing %}ok",
    "{% block a %}in{% endblock %}out",
    "{% block a %}{{ n }}{% endblock %}{{ self.a() }}",
    "{% do list.append(1) %}",
    "{% nope %}",
    "{% if true %}",
    "{% endif %}",
    "{% for %}",
    "{{ }}",
    "{% raw %}{{ x }}{% y %}{# z #}{% endraw %}",
    "{% raw %}\n  {{ x }}\n{% endraw %}\nz",
    "a{# comment {{ x }} #}b",
    "{# multi\nline #}\nx",
    "  {# c #}\n  x",
    "  {# c #} \n  x",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%- if true %}\n  b\n  {%- endif %}\nc\n\n",
    "a\n  {% if true -%}\n  b\n  {% endif -%}\nc",
    "a\n  {%+ if true %}\n  b\n  {%+ endif %}\nc",
    "a\n  {% if true +%}\n  b\n  {% endif +%}\nc",
    "a\n  {{ n }}\n  b\n",
    "a\n  {{- n }}\n  b\n",
    "a\n  {{ n -}}\n  b\n",
    "{{ n }}\n{{ n }}\n\n",
    "\n{{ n }}",
    "  {% set x = 1 %}  \n  {{ x }}",
    "x {% set y = 1 %} \n z",
    "{% set y = 1 %}\n\n z",
    "\t{% if true %}\n\ty\n\t{% endif %}\n",
    "{%if true%}a{%endif%}",
    "{%-if true-%} a {%-endif-%} b",
    "{{'a'}}{{-'b'-}} {{+'c'}}",
    "{{ n\n+\n1 }}",
    "{{ {'a':\n {'b': 1}} }}",
    "{{ {'a': {'b': 1}}}}",
    "{% if {'a': {}} %}x{% endif %}",
    "{ { n } } {% raw %}{%{% endraw %} %} }} #}",
    "{% set x = '}}' %}{{ x }}{{ '%}' }}{{ '{{' }}",
    "{% generation %}a{{ n }}{% endgeneration %}b",
    "{% generation %}\n  {% set q = 1 %}x\n{% endgeneration %}\n{{ q is defined }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{{ loop.index }}{% endfor %}",
    "{% for m in messages %}{{ m['role'] + ':' }}{{ m['content'] if m['content'] is string else '-' }}{{ '\\n' if not loop.last }}{% endfor %}",
    "{% for m in messages -%}\n{{ m.role }}\n{%- if m.tool_calls %} {{ m.tool_calls | tojson }}{% endif %}\n{% endfor %}",
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson if v is not string else v }};{% endfor %}{% endfor %}{% endfor %}",
    "{% macro t(p) %}{% if p.type is string %}{{ p.type }}{% elif p.type is iterable %}{{ p.type | join(' | ') }}{% endif %}{% if p['items'] %}<{{ t(p['items']) }}>{% endif %}{% endmacro %}{% for k, v in schema.properties.items() %}{{ k }}: {{ t(v) }}{% if v.items %}!{% endif %}{% if v.enum %} {{ v.enum | tojson }}{% endif %};{% endfor %}",
    "{% set first = messages[0] %}{% if first.role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ rest | length }}",
    "{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}{% set i = (messages | length - 1) - loop.index0 %}{% if ns.last < 0 and m.role == 'user' %}{% set ns.last = i %}{% endif %}{% endfor %}{{ ns.last }}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}x{% else %}y{% endif %}{% endfor %}",
    "{% if messages[0]['role'] not in ['user', 'system'] %}{{ raise_exception('bad') }}{% endif %}ok",
    "{{ raise_exception('a' ~ 1) }}",
    "{{ raise_exception() }}",
    "{%- for i in range(0, messages | length, 2) -%}{{ messages[i].role }},{%- endfor -%}",
    "{%- set tools = tools if tools is defined else none -%}{{ tools is none }}{{ tools }}",
    "{% if tools is defined and tools is not none and tools | length > 0 %}x{% else %}y{% endif %}",
    "{{ bos_token }}{{ bos_token | default('') }}|{{ eos_token is defined }}",
    "{% set content = messages[1].content %}{% if '?' in content %}{{ content.split('?')[0] }}{% endif %}",
    "{{ 'a' if messages | selectattr('role', 'eq', 'tool') | list | length > 0 else 'b' }}",
    "{% set d2 = {} %}{% set d2 = dict(d2, **{'a': 1}) %}{{ d2 }}",
    "{% autoescape true %}{{ '<a>' }}{% endautoescape %}",
    "{% autoescape false %}{{ '<a>' }}{% endautoescape %}",
    "{{ _('x') }}",
    "{% trans %}x{% endtrans %}",
    "{% set x = [] %}{% for m in messages %}{% set _ = x.append(m) %}{% endfor %}{{ x | length }}",
    "{{ ''.join(messages | map(attribute='role')) }}",
    "{{ ('a' 'b'\n'c') }}",
    "# line\n## not a comment\n{{ n }}",
    "{{ n }} {% if n %} {# x #} {% endif %} end\n",
    "{% if n %}\r\nx\r\n{% endif %}\r\n",
    "{{ '\r\n' | length }}",
    "{%  for x in list  %}{{x}}{%  endfor  %}",
    "{% for x in list %}\n{{ x }}\n{% endfor %}\n",
    "{% for x in list -%}\n{{ x }}\n{%- endfor %}\n",
    "{% for x in list %}{{ x }}{{ ', ' if not loop.last else '.' }}{% endfor %}",
    "{% for x in list %}{% set loop = 1 %}{% endfor %}",
    "{% for x in list %}{{ x }}{% endfor x %}",
    "{% set s = s.replace('l', '') %}{{ s }}",
    "{% set f = s.upper %}{{ f() }}",
    "{% set g = d.get %}{{ g('zeta') }}",
    "{% set k = d.items %}{% for a, b in k() %}{{ a }}{% endfor %}",
    "{% for k in schema.properties %}{{ k }}{{ schema.properties[k].type }}{% endfor %}",
    "{% for k in schema.properties.keys() | sort %}{{ k }}{% endfor %}",
    "{{ schema.properties.items() | list | length }}{{ schema.properties.keys() | list }}{{ schema.properties.values() | list | length }}",
    "{% set text = 'x' %}{% set text = text + '\\n' + 'y' %}{{ text }}",
    "{% set a = b = 1 %}",
    "{{ n; }}",
    "{{ n is }}",
    "{{ n | }}",
    "{% set x = namespace(a=1) %}{{ x }}",
    "{% call nope() %}{% endcall %}",
    "{{ nope() }}",
    "{{ 1 if nope is defined else nope() if false else 'z' }}",
    "{{ s }}" * 3,
    "{{ " + " + ".join(["n"] * 200) + " }}",
    "{{ " + " ~ ".join(["s[0]"] * 200) + " }}",
    "{{ " + "(" * 40 + "n" + ")" * 40 + " }}",
    "{% if n == 1 or n == 2 or n == 3 or n == 4 and s or n == 5 %}x{% endif %}",
]


def probe(source):
    context = json.loads(json.dumps(CONTEXT))
    try:
        return {"source": source, "text": _compile_jinja_template(source).render(**context)}
    except Exception as error:  # Whatever a probe raises is its result.
        return {"source": source, "error": type(error).__name__}


def main():
    sources = ["{{ " + line + " }}" for line in EXPRESSIONS.split("\n")] + TEMPLATES
    probes = [probe(source) for source in dict.fromkeys(sources)]
    # An address or a drawing of lots is not the same twice.
    probes = [p for p in probes if " at 0x" not in p.get("text", "")]
    out = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "context": CONTEXT, "probes": probes}
    text = json.dumps(out, ensure_ascii=True, separators=(",", ":")).replace('{"source"', '\n{"source"')
    FIXTURE.write_text(text + "\n")
    print(f"{len(probes)} probes, {sum('error' in p for p in probes)} of them raise")


main()
