"""Writes what PyYAML and ArcticTraining themselves make of scalars: tests/fixtures/{pyyaml_scalars,human_numbers}.json.

Needs: pip install pyyaml==6.0.3 pydantic==2.14.3, and pip install --no-deps arctic-training==0.8.0. No randomness but seed 0.
"""

import importlib.metadata
import json
import pathlib
import random
import sys
import types

import yaml

# The package's own __init__ imports torch and deepspeed; only arctic_training.config.utils is needed here.
package = pathlib.Path(importlib.metadata.distribution("arctic-training").locate_file("arctic_training"))
for name in ["arctic_training", "arctic_training.config"]:
    module = types.ModuleType(name)
    module.__path__ = [str(package.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = module
from arctic_training.config.utils import HumanInt, UniqueKeyLoader, parse_human_val  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

random.seed(0)
out = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"

scalars = """0 -0 +0 00 007 010 -010 +010 08 0_7 0o10 0b101 -0b1_0 0b 0b2 0x1F 0x_f -0xff 0x 0xg 1 -1 +1 1_000_000 1_ _1 1__2
1:30 1:60 1:5:9 01:30 -1:30 1:30.5 1:30. 1:3:0.25 190:20:30 12:30:45 1:300
1.5 1. .5 -1.5 +1.5 -.5 +.5 ._5 .5_0 1_0.5_0 1.5e8 1.5e+8 1.5e-8 1.5E+08 .5e+3 1e5 1e-5 5e8 1.e+3 1.e3 1.5e+ 1.5e+1_0 1.0e5 5.0e8 5.0e+8
.inf -.inf +.inf .Inf .INF .iNf inf .nan .NaN .NAN -.nan nan NaN
yes Yes YES yEs no No NO on On ON off Off OFF true True TRUE tRue false False FALSE y n Y N t f
~ null Null NULL nUll none None 2001-12-14 2001-1-1 2001-12-14T12:30:00Z 2001-12-14t21:59:43.10-05:00
2002-1-28T4:5:6 2002-12-1412 20021-12-14 2002-12-14T1:2 1.2.3 1-2 -- - + . .. 1,000 1k 10% 3.8M a 1a 0.1.2 1e 1e+ e5 +e5 0. -0. 0.0 -0.0 00.5 0x1.8 1_e5
99999999999999999999 bf16 ./fine-tuned-model messages.role.user flash_attention_2 train[:10%]""".split()
alphabet = "0123456789_.:eE+-xbinf"
scalars += ["".join(random.choices(alphabet, k=random.randint(1, 7))) for _ in range(3000)]
# Blank-separated time stamps, which the split above cannot hold.
scalars += ["2001-12-14 21:59:43.10 -5", "2001-12-15 2:59:43.10", "2001-12-15 2:59", "2001-12-14 "]


def meaning(text):
    try:
        value = yaml.load(f"x: {text}\n", Loader=UniqueKeyLoader)["x"]
    except Exception:
        return None
    if value is None:
        return ["null", None]
    kind = type(value).__name__
    if kind in ("date", "datetime"):
        return ["date", None]
    return [kind, repr(value) if kind == "float" else str(value)]


table = {}
for text in scalars:
    # A value that PyYAML's scanner does not read as one plain scalar is not a question about scalars.
    tokens = None
    try:
        tokens = [t for t in yaml.scan(f"x: {text}\n") if isinstance(t, yaml.ScalarToken)]
    except Exception:
        pass
    answer = meaning(text)
    if tokens and len(tokens) == 2 and tokens[1].plain and tokens[1].value == text and answer:
        if answer[0] != "str" or random.random() < 0.3:  # most random strings are just strings
            table[text] = answer
(out / "pyyaml_scalars.json").write_text(json.dumps({"pyyaml": yaml.__version__, "scalars": table}, indent=0) + "\n")

human = """1_000_000 10^6 1e6 1.1e6 10e-1 1K 1.1K 1Ki 1.5 10.1^3 1e-3 1.1e-3 10% 1.00001K err 1Ke3 1^10e2 1K^2 1K^2e3 1.25M 1.5M 1.25e8
1.2Ki 3.8M 500k 2b 2B 1t 1Ti 2Gi 2gb 2g 1.25 .5K 5.K 5. .5 5.^2 2^.5 2^-1 -2^3 -2^0.5 0^0 0^-1 10^400 1e400 1.25e400 1e-400 -1e3 --1 +5 +5k +1e3 - %
% 1_0% 12.345% 1e2% -5% inf -inf nan Infinity 1e1e1 1e1.5 1e1.55 1.55e1 1.55^2 2^2.55 5e-4 0.00001 1e-5 5e8 1_2_3 _ __1 0x10 1_000_000K 1k% 1E6 1E-5""".split()
human += [" 1k ", "1 k", "", " ", "1 %", "1,5"]
human += ["".join(random.choices("0123456789.^ekmbti%-", k=random.randint(1, 6))) for _ in range(2000)]
adapter = TypeAdapter(HumanInt)
numbers = {}
for text in human:
    for text in (text, "-" + text):
        try:
            number = parse_human_val(text)
            number = repr(number) if not isinstance(number, complex) else None
        except Exception:
            number = None
        try:
            integer = adapter.validate_python(text)
        except Exception:
            integer = None
        if number is not None or len(text) <= 3 or random.random() < 0.2:
            numbers[text] = [number, integer]
versions = {"arctic-training": importlib.metadata.version("arctic-training")}
(out / "human_numbers.json").write_text(json.dumps({**versions, "numbers": numbers}, indent=0) + "\n")
