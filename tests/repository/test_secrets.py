"""No secret and no DSN is in the text of a value, which logs and tracebacks may show."""

import ast
import re

from tests.support.processes import ROOT
from tests.support.repository import is_generated, repository_files

SECRET = re.compile(r"(.*_)?(dsn|password|secrets?|secrets_keys|credentials|(admin|service|postback|validation)_key)")
NAMES = re.compile(r"Sequence|tuple|Callable|bool")
"""Types of fields that only name secrets, or make them."""


def test_fields_with_secrets_are_left_out_of_the_text_of_their_class() -> None:
    found, open_ones = 0, []
    for path in repository_files():
        if path.suffix != ".py" or path.parts[0] in ("protos", "tests") or is_generated(path):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for each in node.body:
                if not (isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)):
                    continue
                if SECRET.fullmatch(each.target.id) and not NAMES.search(ast.unparse(each.annotation)):
                    found += 1
                    if "repr=False" not in ast.unparse(each):
                        open_ones.append(f"{path}:{each.lineno} {each.target.id}")
    assert open_ones == []
    assert found >= 10, "the search finds what there is"
