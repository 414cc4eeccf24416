"""Writes what PyYAML reads from each of tests/fixtures/recipes: tests/fixtures/recipes_pyyaml.json.

Needs: pip install pyyaml==6.0.3. No randomness.
"""

import json
import pathlib

import yaml

fixtures = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"
read = {path.name: yaml.safe_load(path.read_text()) for path in sorted((fixtures / "recipes").glob("*.yml"))}
(fixtures / "recipes_pyyaml.json").write_text(json.dumps(read, indent=1) + "\n")
