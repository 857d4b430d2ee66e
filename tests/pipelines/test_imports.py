"What a run does not pay for."

import subprocess
import sys


def test_no_run_builds_a_grammar_that_it_never_uses() -> None:
    "JupyterLab's environment brings one that jsonschema builds at import, for more than a second."
    code = "import pipelines, jsonschema, sys; print('lark' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
