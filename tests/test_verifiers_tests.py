"""Code held against tests: in Monty, and in bubblewrap where it is installed."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from verifier_conformance import HOSTILE, check_hostile, check_verifier

from rfx_agent import Recovery, RetryBudget, TestsVerifier
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.kinds import kind_of
from rfx_agent.records import Rollout, Step
from rfx_agent.remedies import Revise
from rfx_agent.testing import ScriptedSampler
from rfx_agent.tools import OSSandbox, Sandbox
from rfx_agent.verifiers.unit_tests_read import read_tests

STEP = Step.of("Write the function.")
MEDIAN = [
    "median([7]) == 7",
    "assert median([3, 1, 2]) == 2",
    "median([4, 1, 3, 2]) == 2.5",
    "(lambda given: (median(given), given)[1])([2, 1]) == [2, 1]",  # the argument is left as it was
]
RIGHT = """def median(numbers):
    numbers = sorted(numbers)
    half = len(numbers) // 2
    return numbers[half] if len(numbers) % 2 else (numbers[half - 1] + numbers[half]) / 2"""

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")
BOTH = ["monty", pytest.param("bubblewrap", marks=[needs_bwrap, pytest.mark.slow])]


@pytest.fixture(scope="module", params=BOTH)
def sandbox(request):
    if request.param == "monty":
        with Sandbox(seconds=1.0, memory=32 * 2**20) as made:
            yield made
    else:
        yield OSSandbox(seconds=1.5, memory=128 * 2**20)


@pytest.fixture(scope="module")
def cpython():
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap: apt-get install bubblewrap")
    return OSSandbox(seconds=1.5, memory=128 * 2**20)


def judged(tests, code, sandbox, **options):
    return TestsVerifier(tests, sandbox=sandbox, **options).verify(STEP, Rollout(code))


def test_contract(sandbox):
    check_verifier(TestsVerifier(MEDIAN, sandbox=sandbox), STEP, passing=RIGHT, failing="def median(x): return 1")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(sandbox, name):
    check_hostile(TestsVerifier(MEDIAN, sandbox=sandbox), STEP, HOSTILE[name])


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        f"Here it is:\n```python\n{RIGHT}\n```\nIt sorts first.",
        f"```\n{RIGHT}\n```",
        f"```python\ndef median(x): return 0\n```\nNo, better:\n```python\n{RIGHT}\n```",
        f"```python\n{RIGHT}\n```\nUse it:\n```python\nprint(median([1]))\n```\nIt prints:\n```text\n1\n```",
        f"1. So:\n   ```python\n{RIGHT}\n   ```",
        f"```python\n{RIGHT}",  # never closed
        f"<think>```python\ndef median(x): return 0\n```</think>\n```python\n{RIGHT}\n```",
        RIGHT.replace("\n", "\r\n"),
    ],
)
def test_code_is_found(text):
    with Sandbox() as sandbox:
        verdict = judged(MEDIAN, text, sandbox)
    assert verdict.passed, verdict.reason
    assert verdict.score == 1.0
    assert "all 4 tests pass (Monty" in verdict.reason
    assert verdict.answer.startswith("def median(numbers):")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "malformed"),
        ("I am sorry, I cannot do that.", "malformed"),
        ("```text\nno code\n```", "malformed"),
        ("```python\ndef median(:\n```", "malformed"),
        ("def other(x): return 1", "wrong"),
        ("x = 1 / 0", "wrong"),
        ("while True: pass", "wrong"),
        ("def median(x):\n    while True: pass", "wrong"),
        ("def median(x):\n    return median(x)", "wrong"),
    ],
)
def test_kinds(sandbox, text, kind):
    verdict = judged(MEDIAN, text, sandbox)
    assert not verdict.passed
    assert verdict.kind == kind, verdict.reason
    assert verdict.feedback
    assert sandbox.what in verdict.reason or "no code" in verdict.reason


def test_text_that_ends_while_thinking_was_cut(sandbox):
    rollout = Rollout(f"<think>```python\n{RIGHT}\n```")
    verdict = TestsVerifier(MEDIAN, sandbox=sandbox).verify(STEP, rollout)
    assert not verdict.passed
    assert kind_of(Rollout(rollout.text, verdict=verdict)) == "cut"


@pytest.mark.parametrize(
    ("code", "feedback"),
    [
        (
            "def median(numbers):\n    return numbers[len(numbers) // 2]",
            "This test fails: assert median([3, 1, 2]) == 2\nmedian([3, 1, 2]) gave 1",
        ),
        (
            "def median(numbers):\n    x = 1\n    return numbers[9]",
            "This test fails: assert median([7]) == 7\nError: IndexError: list index out of range "
            "(line 3: return numbers[9])",
        ),
        (
            "def median(numbers):\n    raise ValueError('no')",
            "This test fails: assert median([7]) == 7\nError: ValueError: no (line 2: raise ValueError('no'))",
        ),
        ("y = 1\nx = y / 0", "The code fails before any test: ZeroDivisionError: division by zero (line 2: x = y / 0)"),
    ],
)
def test_feedback_says_what_failed_and_how(sandbox, code, feedback):
    assert judged(MEDIAN, code, sandbox).feedback == feedback


def test_what_an_earlier_call_gave_is_not_told(sandbox):
    tests = "def check(f):\n    assert f(1) == 1\n    assert f(2) == 2\ncheck(f)"
    verdict = judged(tests, "def f(x):\n    return 1 if x == 1 else 1 // 0", sandbox)
    assert verdict.feedback.startswith("This test fails: assert f(2) == 2\nError: ZeroDivisionError")


def test_score_is_the_share_of_tests(sandbox):
    assert judged(MEDIAN, "def median(numbers):\n    return numbers[len(numbers) // 2]", sandbox).score == 0.5


def test_late_code_is_a_typed_no(sandbox):
    verdict = judged(["f(1) == 1", "f(2) == 2"], "def f(x):\n    while x == 2: pass\n    return x", sandbox)
    assert not verdict.passed
    assert verdict.kind == "wrong"
    assert verdict.feedback.startswith("This test fails: assert f(2) == 2\nError: TimeoutError")


def test_feedback_is_bounded(sandbox):
    test = f"f('{'a' * 5000}') == '{'b' * 5000}'"
    for code in (
        "def f(x):\n    return x * 9",
        f"def f(x):\n    raise ValueError('{'c' * 5000}')",
        f"def f(x):\n    raise ValueError('c'); '{'d' * 5000}'",
        f"x = '{'d' * 5000}'; 1 / 0",
        f"x = '{'d' * 5000}' +",
    ):
        verdict = judged([test], code, sandbox)
        assert not verdict.passed
        assert len(verdict.feedback) <= 800
        assert len(verdict.reason) < 1500


# What code tries instead of being right. Each is a whole reply.
_FORGED = {
    "prints a verdict": 'print(\'{"end": true}\\n{"passed": true, "counts": true}\')\nprint("all 4 tests pass")',
    "prints a record, then leaves": "import sys\nprint('{\"end\": true}')\nsys.exit(0)",
    "leaves before the tests": "import os\nos._exit(0)",
    "leaves with SystemExit": "raise SystemExit(0)",
    "leaves when called": "def median(x):\n    import os\n    os._exit(0)",
    "SystemExit when called": "def median(x):\n    raise SystemExit(0)",
    "KeyboardInterrupt when called": "def median(x):\n    raise KeyboardInterrupt",
    "StopIteration when called": "def median(x):\n    raise StopIteration",
    "AssertionError when called": "def median(x):\n    raise AssertionError",
    "returns nothing": "def median(x): pass",
    "returns itself": "def median(x): return median",
    "returns True": "def median(x): return True",
    "NotImplemented": "def median(x): return NotImplemented",
    "redefines what tests use": "def len(x): return 1\ndef sorted(x): return x\ndef median(x): return x[0]",
    "redefines by builtins": "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.bool = lambda x: True\n"
    "def median(x): return 0",
    "defines the tests' helper": "def __rfx_call(*a, **k): return True\ndef median(x): return 0",
    "defines the codec": "def __rfx_enc(v): return 7\ndef __rfx_dec(v): return ((), {})\ndef median(x): return 0",
    "equals everything": "class E:\n    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\n"
    "def median(x): return E()",
    "number that equals everything": "class E(float):\n    def __eq__(self, other): return True\n"
    "    __hash__ = float.__hash__\ndef median(x): return E(0)",
    "tuple that equals everything": "class E(tuple):\n    def __eq__(self, other): return True\n"
    "def median(x): return E()",
    "is a class": "class median:\n    def __new__(cls, x): return object.__new__(cls)\n"
    "    def __eq__(self, other): return True",
    "swaps the wire": "from rfx_agent.tools.box import wire, code\nwire.Peer.pack = lambda *a, **k: True\n"
    "def median(x): return 0",
    "floods the line": "import os\ndef median(x):\n    while True: os.write(3, b'\\0' * 65536)",
    "junk on the line": "import os\nos.write(3, b'\\xff\\xff\\xff\\xff' + b'x' * 9999)\ndef median(x): return 0",
    "answers in advance": "import os, json, struct\nraw = json.dumps(['value', True]).encode()\n"
    "for _ in range(50): os.write(3, struct.pack('>I', len(raw)) + raw)\ndef median(x): return 0",
    "closes the line": "import os\nos.close(3)\ndef median(x): return 0",
    "writes to every descriptor": "import os\nfor i in range(64):\n    try: os.write(i, b'{\"end\": true}\\n')\n"
    "    except OSError: pass\ndef median(x): return 0",
    "traces the parent": "import ctypes, os\nctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\ndef median(x): return 0",
    "kills the parent": "import os\nos.kill(os.getppid(), 9)\ndef median(x): return 0",
    "kills all": "import os\nos.kill(-1, 9)\ndef median(x): return 0",
    "looks for the expected value": "import gc, sys\ndef median(x):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, (list, tuple)) and 2.5 in o: return 2.5\n    return 0",
    "looks up the stack": "import sys\ndef median(x):\n    f = sys._getframe()\n    while f:\n"
    "        if 'MEDIAN' in f.f_globals or 'trial' in f.f_locals: return 7\n        f = f.f_back\n    return 0",
    "looks through files": "import glob\ndef median(x):\n"
    "    for n in glob.glob('/tmp/*') + glob.glob('/proc/*/fd/*'):\n"
    "        if '2.5' in open(n).read(): return 2.5\n    return 0",
}


@pytest.mark.parametrize("name", _FORGED)
def test_no_pass_is_forged(sandbox, name):
    verdict = judged(MEDIAN, _FORGED[name], sandbox)
    assert not verdict.passed, verdict
    assert judged(MEDIAN, RIGHT, sandbox).passed


_LOOSE = {
    "nothing runs": ("try:\n    f(-1)\nexcept Exception:\n    pass\nelse:\n    assert False", "os._exit(0)"),
    "bare except": ("try:\n    f(-1)\n    ok = False\nexcept:\n    ok = True\nassert ok", "os._exit(0)"),
    "map ends early": ("assert all(map(f, [1, 2, 3]))", "raise StopIteration"),
    "in": ("assert 'err' in f(1)", "return type('E', (), {'__contains__': lambda s, x: True})()"),
    "startswith": ("assert f(1).startswith('a')", "return type('E', (), {'startswith': lambda s, x: True})()"),
    "difference": (
        "assert abs(f(1) - 2.0) < 1e-6",
        "return type('E', (), {'__sub__': lambda s, x: s, '__abs__': lambda s: 0.0})()",
    ),
    "less": ("assert f(1) < 2", "return type('E', (), {'__lt__': lambda s, x: True})()"),
    "not equal": ("assert not f(1) != 2", "return type('E', (), {'__ne__': lambda s, x: False})()"),
    "two of its own": ("assert f(1) == f(1)", "return type('E', (), {'__eq__': lambda s, x: True})()"),
    "a class with a known name": (
        "try:\n    g(1)\nexcept ValueError:\n    pass\nassert f(1) == f(1)\nassert f(1).startswith('a')",
        "return type('ValueError', (), {'__eq__': lambda s, x: True, 'startswith': lambda s, x: True})()\n"
        "def g(x): raise ValueError",
    ),
    "a property ends a loop": (
        "assert all(map(lambda x: f(x).good == 1, [1, 2]))",
        "return type('E', (), {'good': property(lambda s: next(iter(())))})()",
    ),
    "its own math": ("assert math.isclose(f(1), 2.0)", "return 0\nclass math:\n    isclose = lambda a, b: True"),
    "sets a mock's assertion": (
        "from unittest.mock import Mock\nm = Mock()\nf(m)\nm.assert_called_once_with(3)",
        "x.assert_called_once_with = lambda *a: None",
    ),
    "a list of them": (
        "assert f(1) == [1, 2]",
        "return [type('E', (), {'__eq__': lambda s, x: True})() for _ in range(2)]",
    ),
    "a key": (
        "assert f(1) == {'a': 1}",
        "return {'a': type('E', (), {'__eq__': lambda s, x: True})()}",
    ),
    "says bool": ("assert isinstance(f(1), bool)", "return type('E', (), {'__class__': bool})()"),
    "replaces what tests": (
        "class Kept:\n    def __init__(self): self.got = []\n    def add(self, x): self.got.append(x)\n"
        "    def check(self): assert self.got == [1]\nkept = Kept()\nf(kept)\nkept.check()\nassert kept",
        "x.check = lambda: None",
    ),
    "forgets a mock's calls": (
        "from unittest.mock import Mock\nm = Mock()\nf(m)\nm.assert_not_called()",
        "x(1)\n    x.reset_mock()",
    ),
    "changes what a mock has seen": (
        "from unittest.mock import Mock\nm = Mock()\nf(m)\nassert m.call_count == 1",
        "x.call_count = 1",
    ),
    "an error's attribute": (
        "try:\n    f(1)\nexcept Exception as error:\n    assert error.code == 3",
        "raise type('E', (Exception,), {'code': type('C', (), {'__eq__': lambda s, x: True})()})",
    ),
}


# Tests that a runner would find and run: each fails for code that gives what it was given.
_COLLECTED = {
    "behind the guard of a script": "x = f(1)\nif __name__ == '__main__':\n    assert x == 2\n    print('ok')",
    "in an async function": "def test_a():\n    assert f(1)\nasync def test_b():\n    assert f(1) == 2",
    "in a plain class": "def test_a():\n    assert f(1)\n"
    "class TestF:\n    def setup_method(self):\n        self.x = 1\n"
    "    def test_b(self):\n        assert f(self.x) == 2",
    "in a case under another name": "from unittest import TestCase as Base\nclass F(Base):\n    def test_a(self):\n"
    "        self.assertEqual(f(1), 2)",
    "in a case of a case": "import unittest\nclass Base(unittest.TestCase):\n    def check(self, x): assert f(x) == 2\n"
    "class F(Base):\n    def test_a(self):\n        self.check(1)",
    "in an async case": "import unittest\nclass F(unittest.IsolatedAsyncioTestCase):\n    async def test_a(self):\n"
    "        self.assertEqual(f(1), 2)",
    "with its class's fixture": "import unittest\nclass F(unittest.TestCase):\n    @classmethod\n"
    "    def setUpClass(cls): cls.x = 1\n    def test_a(self):\n        self.assertEqual(f(self.x), 2)\n"
    "if __name__ == '__main__':\n    unittest.main()",
    "a function that is called": "def test_all(candidate):\n    assert candidate(1) == 2\ntest_all(f)",
}


@pytest.mark.parametrize("name", _COLLECTED)
def test_every_test_is_run(sandbox, name):
    right, wrong = (judged(_COLLECTED[name], f"def f(x): return x + {n}", sandbox) for n in (1, 0))
    plain = sandbox.name != "monty" or name in ("behind the guard of a script", "a function that is called")
    assert right.passed is plain, right.reason
    assert not wrong.passed
    assert plain or right.kind == "unchecked"


@pytest.mark.slow
@pytest.mark.parametrize("name", _LOOSE)
def test_no_pass_is_forged_where_tests_are_loose(cpython, name):
    test, body = _LOOSE[name]
    verdict = judged(test, f"import os\ndef f(x):\n    {body}", cpython)
    assert not verdict.passed, verdict


def test_what_python_does_itself_is_no_ones_to_change(sandbox):
    # The code says that everything is sorted; the tests ask their own sorted.
    test = "assert sorted(f([2, 1])) == [1, 2]"
    assert judged(test, "def f(x): return x", sandbox).passed
    verdict = judged(test, "def sorted(x): return [1, 2]\ndef f(x): return []", sandbox)
    assert not verdict.passed
    assert "redefines sorted" in verdict.feedback


def test_a_builtins_name_can_be_what_is_tested(sandbox):
    with pytest.raises(ConfigError, match=r"names=\('max',\)"):
        TestsVerifier("assert max([1, 2]) == 2", sandbox=sandbox)
    good, bad = "def max(x): return sorted(x)[-1]", "def max(x): return x[0]"
    assert judged("assert max([1, 2]) == 2", good, sandbox, names=["max"]).passed
    assert not judged("assert max([1, 2]) == 2", bad, sandbox, names=["max"]).passed
    assert not judged("assert max([1, 2]) == 2", "x = 1", sandbox, names=["max"]).passed
    assert judged("max", good, sandbox, cases=[(([1, 2],), 2)]).passed


def test_cases(sandbox):
    cases = [((2, 3), 5), (("a", "b"), "ab"), (([1], [2]), [1, 2])]
    assert judged("add", "def add(a, b): return a + b", sandbox, cases=cases).passed
    verdict = judged("add", "def add(a, b): return b + a", sandbox, cases=cases)
    assert verdict.feedback == "This test fails: assert add('a', 'b') == 'ab'\nadd('a', 'b') gave 'ba'"


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("def check(candidate):\n    assert candidate(2) == 4\n    for i in range(3):\n"
         "        assert candidate(i) == i * i\n"
         "check(f)", "def f(x): return x * x"),
        ("def test_one():\n    assert f(2) == 4\n\ndef test_two():\n    assert f(3) == 9", "def f(x): return x * x"),
        ("try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'below'",
         "def f(x):\n    if x < 0: raise ValueError('below')\n    return x"),
        ("xs = [3, 1]\nf(xs)\nassert xs == [1, 3]", "def f(xs): xs.sort()"),
        ("d = {}\nf(d)\nassert d == {'a': 1}", "def f(d): d['a'] = 1"),
        ("assert f() == (1, [2, {3}], {'a': None}, b'x', 2.5, 10 ** 30)",
         "def f(): return (1, [2, {3}], {'a': None}, b'x', 2.5, 10 ** 30)"),
        ("assert LIMIT == 3", "LIMIT = 3"),
        ("assert f(1, b=2) == 3", "def f(a, b): return a + b"),
        ("assert f(10 ** 30) == 10 ** 30 + 1", "def f(x): return x + 1"),
        ("import math\nassert math.isclose(f(2), 1.41421356, rel_tol=1e-6)",
         "import math\ndef f(x): return math.sqrt(x)"),
    ],
)  # fmt: skip
def test_forms_of_tests(sandbox, tests, code):
    verdict = judged(tests, code, sandbox)
    assert verdict.passed, verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(2), 4)\n"
         "    def test_b(self):\n        with self.assertRaises(ValueError):\n            f(-1)",
         "def f(x):\n    if x < 0: raise ValueError\n    return x * x"),
        ("s = Stack()\ns.push(3)\nassert s.size == 1\nassert s.pop() == 3\nassert not s\ntry:\n    s.pop()\n"
         "    assert False\nexcept Empty as error:\n    assert str(error) == 'none'",
         "class Empty(Exception): pass\nclass Stack:\n    def __init__(self): self.x = []\n"
         "    def push(self, a): self.x.append(a)\n    def pop(self):\n        if not self.x: raise Empty('none')\n"
         "        return self.x.pop()\n    @property\n    def size(self): return len(self.x)\n"
         "    def __len__(self): return len(self.x)"),
        ("assert V(1) + V(2) == V(3)\nassert V(1) != V(2)\nassert isinstance(V(1), V)\nassert repr(V(1)) == 'V(1)'",
         "class V:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x\n"
         "    def __add__(self, o): return V(self.x + o.x)\n    def __repr__(self): return f'V({self.x})'"),
        ("assert list(f(3)) == [0, 1, 2]\nassert next(f(1)) == 0", "def f(n):\n    for i in range(n): yield i"),
        ("assert f(lambda x: x + 1, 3) == 4\nassert f(abs, -3) == 3", "def f(g, x): return g(x)"),
        ("assert f(iter([1, 2])) == 3\nassert f(x for x in (1, 2)) == 3", "def f(xs): return sum(xs)"),
        ("assert p().a == 1\nassert p() == (1, 2)\na, b = p()\nassert b == 2",
         "from collections import namedtuple\nP = namedtuple('P', 'a b')\ndef p(): return P(1, 2)"),
        ("import asyncio\nassert asyncio.run(f(2)) == 4", "async def f(x): return x * x"),
        ("from fractions import Fraction\nassert f() == Fraction(1, 2)", "from fractions import Fraction\n"
         "def f(): return Fraction(2, 4)"),
        ("from datetime import date\nassert f(date(2024, 2, 28)) == date(2024, 2, 29)",
         "from datetime import timedelta\ndef f(d): return d + timedelta(1)"),
        ("from collections import Counter\nassert f('aab') == Counter('aab')\n"
         "assert f('aab').most_common(1) == [('a', 2)]",
         "from collections import Counter\ndef f(s): return Counter(s)"),
        ("import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    f()\n"
         "assert out.getvalue() == 'hi\\n'", "def f(): print('hi')"),
        ("grid = [[1, 2], [3, 4]]\nrow = grid[0]\nf(grid)\nassert row == [0, 2] and grid == [[0, 2], [3, 4]]",
         "def f(g): g[0][0] = 0"),
        ("class Node:\n    def __init__(self, v, n=None): self.v, self.n = v, n\nassert f(Node(1, Node(2))) == [1, 2]",
         "def f(n):\n    out = []\n    while n is not None:\n        out.append(n.v)\n        n = n.n\n    return out"),
        ("assert f() == Color.RED\nassert f().name == 'RED'\nassert f().value == 1",
         "import enum\nclass Color(enum.Enum):\n    RED = 1\ndef f(): return Color.RED"),
        ("from unittest.mock import Mock\nm = Mock()\nf(m)\nm.assert_called_once_with(3)", "def f(g): return g(3)"),
        ("assert math.isclose(f(2), 4.0)", "def f(x): return x * 2"),
        ("from unittest.mock import Mock\nm = Mock()\nm.get.return_value = 5\nassert f(m) == 6\n"
         "m.get.assert_called_once_with('a')", "def f(m): return m.get('a') + 1"),
        ("assert f(3) is int and f('a') == str", "def f(x): return type(x)"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nassert f(P(3)) == 4",
         "def f(p): return p.x + 1"),
        ("try:\n    f()\n    assert False\nexcept Late as error:\n    assert error.code == 3 and str(error) == 'late'",
         "class Late(Exception):\n    def __init__(self, text, code):\n        super().__init__(text)\n"
         "        self.code = code\ndef f(): return Late.of()\nLate.of = classmethod(lambda c: raised(c('late', 3)))\n"
         "def raised(error): raise error"),
        ("assert build([2, 1]).left.val == 1", "class Node:\n    def __init__(self, v): self.val, self.left = v, None\n"
         "def build(xs):\n    n = Node(xs[0])\n    n.left = Node(xs[1])\n    return n"),
    ],
)  # fmt: skip
def test_whole_python_in_bubblewrap(cpython, tests, code):
    verdict = judged(tests, code, cpython)
    assert verdict.passed, verdict.reason
    broken = judged(tests, code.replace("return", "return None #").replace("yield i", "yield None"), cpython)
    assert not broken.passed or "print" in code or "g[0]" in code


@pytest.mark.slow
def test_operators_are_believed_only_when_that_is_said(cpython):
    code = "class Money:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o"
    refused = judged("assert Money(5) == 5", code, cpython)
    assert not refused.passed
    assert "object of its class Money" in refused.feedback
    assert judged("assert Money(5) == 5", code, cpython, operators=True).passed
    assert not judged("assert Money(4) == 5", code, cpython, operators=True).passed


@pytest.mark.parametrize(
    "code",
    [
        "import statistics\ndef f(x): return statistics.mean(x)",
        "import heapq\ndef f(x): return heapq.nsmallest(1, x)[0]",
        "def g(x):\n    yield x[0]\ndef f(x): return next(g(x))",
        "def f(x):\n    x = list(x)\n    del x[1:]\n    return x[0]",
        "class A:\n    def __init__(self, x): self.x = x\n    @property\n    def p(self): return self.x[0]\n"
        "def f(x): return A(x).p",
    ],
)
def test_what_monty_lacks_is_no_verdict_on_the_code(code):
    with Sandbox() as sandbox:
        verdict = judged("assert f([1, 1]) == 1", code, sandbox)
    assert not verdict.passed
    assert verdict.kind == "unchecked"
    assert "Monty" in verdict.reason
    assert "bubblewrap" in verdict.reason
    if shutil.which("bwrap"):
        assert judged("assert f([1, 1]) == 1", code, OSSandbox()).passed


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("", "no assert"),
        ([], "no assert"),
        ("def f(:", "cannot be read"),
        ("return f(1)", "cannot be read"),
        ("x = 1", "no assert"),
        ("assert 1 == 1", "no name"),
        ("assert sorted([1]) == [1]", "no name"),
        ("assert (f(1) == 2, 'it is two')", "true whatever the code gives"),
        ("f(1) == 2, 'it is two'", "no assert"),
        (["f(1), 2"], "true whatever the code gives"),
        ("assert (f(x) == x for x in range(3))", "true whatever the code gives"),
        ("def test_a():\n    assert f(1) == 2\n    yield", "a generator"),
        ("def test_a(x, y):\n    assert f(x) == y", "needs x, y"),
        ("import pytest\ndef test_a():\n    assert f(1) == 2", "'pytest', which is not in the standard library"),
        ("from solution import f\nassert f(1) == 2", "names of the code need no import"),
        (
            "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('later')\n    def test_a(self):\n"
            "        self.assertEqual(f(1), 2)",
            'marked "unittest.skip',
        ),
        (5, "give Python source"),
        (["f(1) == 1", 5], "give Python source"),
    ],
)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_tests_that_test_nothing_are_refused(tests, message):
    with pytest.raises(ConfigError, match=message):
        TestsVerifier(tests, sandbox="monty")


@pytest.mark.parametrize(
    "options",
    [
        {"tests": "f", "cases": []},
        {"tests": "f(", "cases": [((1,), 1)]},
        {"tests": ["f"], "cases": [((1,), 1)]},
        {"tests": "f", "cases": [(1, 1)]},
        {"tests": "f", "cases": [((object(),), 1)]},
        {"tests": "assert f(1)", "sandbox": "docker"},
        {"tests": "assert f(1)", "names": ["a b"]},
        {"tests": "assert f(1)", "name": ""},
    ],
)
def test_parameters_fail_at_once(options):
    with pytest.raises(ConfigError):
        TestsVerifier(**{"sandbox": "monty", **options})


def test_reading():
    trial = read_tests("x = 2\nassert f(x) == 4\nf(1) == 1\nprint(f(2))\n\ndef test_a():\n    assert g(1)", ())
    assert trial.tests == (("x = 2\nassert f(x) == 4", True), ("assert f(1) == 1", True),
                           ("print(f(2))\ndef test_a():\n    assert g(1)", False))  # fmt: skip
    assert (trial.count, trial.functions) == (3, ("test_a",))
    assert set(trial.free) == {"f", "g", "print"}


def test_tests_of_the_step_are_not_told():
    verifier = TestsVerifier(sandbox="monty")
    step = Step.of("Write f.", expected=["f(1) == 41"])
    assert verifier.verify(step, Rollout("def f(x): return 41")).passed
    verdict = verifier.verify(step, Rollout("def f(x): return 42"))
    assert not verdict.passed
    assert "41" not in verdict.feedback
    assert "line 1" in verifier.verify(step, Rollout("def f(x): return 1 / 0")).feedback
    with pytest.raises(ConfigError, match="nothing to compare with"):
        verifier.verify(Step.of("x"), Rollout("def f(x): return 41"))


def test_before_stands_before_the_code(sandbox):
    code = "def f(x): return base + x"
    assert judged("assert f(1) == 3", code, sandbox, before="base = 2").passed
    assert "name 'base'" in judged("assert f(1) == 3", code, sandbox).feedback


def test_never_shows_the_tests_in_its_repr():
    assert "secret" not in repr(TestsVerifier("assert f('secret')", sandbox="monty"))


def test_both_sides_agree_and_run_together(sandbox):
    verifier = TestsVerifier("assert f(2) == 4", sandbox=sandbox)
    texts = [f"def f(x): return x * {i % 4}" for i in range(8)]

    async def all_of_them():
        return await asyncio.gather(*(verifier.averify(STEP, Rollout(text)) for text in texts))

    several = [verdict.passed for verdict in asyncio.run(all_of_them())]
    assert several == [verifier.verify(STEP, Rollout(text)).passed for text in texts] == [False, False, True, False] * 2


def test_a_failed_test_leads_to_a_revision(sandbox):
    sampler = ScriptedSampler([f"```python\n{RIGHT}\n```"])
    recovery = Recovery(
        sampler, TestsVerifier(MEDIAN, sandbox=sandbox), remedies=[Revise()], budget=RetryBudget(attempts=1)
    )
    case = recovery.run("Write median.", "def median(x): return x[0]")
    assert case.outcome.status == "rescued"
    assert case.outcome.by == "revise"
    assert "median([3, 1, 2]) gave 3" in str(sampler.requests[-1].messages)
