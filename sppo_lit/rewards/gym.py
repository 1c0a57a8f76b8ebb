"""Tasks of reasoning-gym (extra ``gym``) whose own scorers judge answers, and which of its tasks are fit for that.

A scorer is code of that package which reads what a model wrote. So it runs in the processes that judge answers, and a
task is allowed only if it was checked: nothing that its scorer calls evaluates text as code, its own answers score 1
from within a box and after a passage through JSON, nonsense does not, and a seed gives the same problems in every
process. `tests/rewards/test_gym_scorers.py` repeats the check on the installed version.
"""

from __future__ import annotations

import difflib
import json
import random
from functools import cache
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.rewards.math.answers import Judgement
from sppo_lit.rewards.math.boxes import extract_answer
from sppo_lit.types import TaskGold

_CHECKED = """
ab acre advanced_geometry aiw arc_1d base_conversion basic_arithmetic binary_alternation caesar_cipher
calendar_arithmetic chain_sum circuit_logic color_cube_rotation count_bits count_primes course_schedule
cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships fraction_simplification
futoshiki game_of_life gcd group_anagrams jugs kakurasu knights_knaves largest_island lcm leg_counting
letter_counting letter_jumble mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid needle_haystack
number_filtering number_format number_sequence palindrome_generation palindrome_partitioning path_star
polynomial_equations power_function prime_factorization products quantum_lock rectangle_count rotate_matrix
rotten_oranges self_reference sentence_reordering shortest_path simple_equations simple_geometry sokoban
spell_backward string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals
tower_of_hanoi tsumego word_sequence_reversal word_sorting zebra_puzzles
"""
ALLOWED = frozenset(_CHECKED.split())

_REASONS = {
    "its scorer evaluates text as code": "binary_matrix bitwise_arithmetic countdown intermediate_integration n_queens "
    "number_sorting polynomial_multiplication puzzle24 simple_integration spiral_matrix string_insertion",
    "its scorer does not accept its own answers": "arc_agi boxnet graph_color gsm_symbolic propositional_logic rearc "
    "rubiks_cube rush_hour",
    "its scorer accepts wrong answers": "coin_flip complex_arithmetic figlet_font game_of_life_halting",
    "its problems or answers differ from process to process": "codeio isomorphic_strings knight_swap list_functions "
    "ransom_note word_ladder",
    "it is a mixture of other tasks; name those": "composite",
    "its generator writes to the screen": "bf",
    "its generator sets the random state of the whole process": "pool_matrix",
}
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}
"""Tasks that are not allowed, and why (entries of `arc_agi`, `gsm_symbolic` and `rearc` do not pass through JSON)."""


def check_task(name: str) -> None:
    """Refuse a task that is not allowed; needs no package.

    Raises:
        InputError: an unknown or a refused task.
    """
    if name in REFUSED:
        raise InputError(f"reasoning_gym/{name} is not supported: {REFUSED[name]}; choose another task")
    if name not in ALLOWED:
        near = difflib.get_close_matches(name, ALLOWED, n=3, cutoff=0.5) or sorted(ALLOWED)
        raise InputError(f"reasoning_gym/{name}: no such task; did you mean {', '.join(near)}?")


def package() -> Any:
    """The package reasoning_gym.

    Raises:
        InputError: it is not installed.
    """
    state = random.getstate()  # importing it draws from the random numbers of the process
    try:
        import reasoning_gym
    except ImportError:
        raise InputError("reasoning_gym/NAME in data needs the extra: pip install 'sppo-lit[gym]'") from None
    finally:
        random.setstate(state)
    return reasoning_gym


def make_task(name: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """The package's data set of one problem, which is also its scorer.

    Args:
        name: of the task.
        settings: of its difficulty; those left out have the package's defaults.
        seed: of the problem, at least 0 and below 2³¹.

    Raises:
        InputError: a task that is not allowed, or the package is not installed.
    """
    check_task(name)
    return package().create_dataset(name, seed=seed, size=1, **settings)


@cache
def _scorer(name: str, settings: str) -> Any:
    return make_task(name, json.loads(settings))


def load_scorer(gold: TaskGold) -> Any:
    """The scorer for a gold answer; kept, since the first one imports the package, which takes seconds."""
    return _scorer(gold.task, json.dumps(gold.settings))


def judge(response: str, gold: TaskGold, finished: bool = True) -> Judgement:
    """Judge the last box of a response by the task's scorer: right if the score is exactly 1.

    May take very long for a hostile response, and raises whatever the scorer raises.

    Args:
        response: decoded response, without the prompt.
        gold: of the problem.
        finished: False if the response was truncated.
    """
    answer = extract_answer(response)
    if answer is None:
        return Judgement(0.0, "no_answer" if finished else "truncated", None)
    if load_scorer(gold).score_answer(answer, gold.entry) == 1:
        return Judgement(1.0, "correct", answer, f"scorer of {gold.task}")
    return Judgement(0.0, "wrong", answer)
