"""Attacks on run folders, the command line and the dashboard: how often tried, how often survived.

Used by `faults.py attacks`. Each try is one case of a test that does the thing for real: a link to
another folder, a sparse file of ten gigabytes, a process that is interrupted. Survived means that
what the test claims held: nothing outside was touched, memory stayed bounded, the other runs could
be read, the exit code was right.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
HEADER = ("attack", "tried", "survived")

_LINKS, _BOUNDS = "tests/runs/test_links.py", "tests/runs/test_bounds.py"
_TOGETHER, _NAMES = "tests/runs/test_together.py", "tests/runs/test_names.py"
_STORAGE, _OUTPUTS = "tests/runs/test_storage.py", "tests/runs/test_outputs.py"
_SHELL, _SERVER = "tests/cli/test_surroundings.py", "tests/cli/test_dashboard.py"
_PAGES = "tests/dashboard/test_pages.py"

ATTACKS: dict[str, tuple[str, ...]] = {
    "a folder inside a run is a link; amend, resume, migrate, give up": (
        f"{_LINKS}::test_a_linked_folder_is_neither_followed_nor_removed_and_verify_names_it",
        f"{_LINKS}::test_clearing_up_leaves_links_and_other_programs_folders_alone",
        f"{_LINKS}::test_test_images_are_not_written_through_a_link",
    ),
    "measure, attribute, sweep on a run with a linked folder": (
        "tests/cli/test_measure.py::test_a_folder_that_a_run_links_to_is_not_touched",
        "tests/cli/test_attribute.py::test_a_folder_that_a_run_links_to_is_not_touched",
        "tests/experiments/test_sweep.py::test_a_sweep_that_goes_on_leaves_what_a_run_links_to_alone",
    ),
    "a file of a run is a link; written through, appended to": (
        f"{_LINKS}::test_a_linked_file_is_not_read_and_breaks_its_run_alone",
        f"{_LINKS}::test_nothing_is_written_through_a_link",
        f"{_LINKS}::test_curves_that_became_a_link_under_a_writer_are_not_appended_to",
    ),
    "a mount inside a run": (
        f"{_LINKS}::test_a_mount_is_neither_followed_nor_written_nor_removed",
    ),
    "a hard link; a pipe, socket, device or folder in place of a file": (
        f"{_LINKS}::test_a_hard_linked_file_is_named_and_its_other_name_keeps_its_content",
        f"{_LINKS}::test_what_is_no_regular_file_is_named_and_nothing_waits_for_it",
    ),
    "a link onto itself, an unreadable entry": (
        f"{_LINKS}::test_a_link_onto_itself_and_an_unreadable_entry_hide_no_other_run",
        "tests/runs/test_faults.py::test_a_file_that_may_not_be_read_breaks_its_run_alone",
    ),
    "output of a command into a run": (
        f"{_OUTPUTS}::test_no_command_takes_a_place_inside_a_run_for_its_output",
        f"{_OUTPUTS}::test_the_command_line_leaves_the_run_as_it_was",
        f"{_OUTPUTS}::test_functions_refuse_it_too",
    ),
    "names of arrays: long, strange, a way out, alike but for case": (
        f"{_NAMES}::test_an_array_name_that_could_not_be_read_back_is_refused_before_anything_is_written",
        f"{_NAMES}::test_an_array_name_that_is_accepted_can_be_read_back_and_replaced",
        f"{_NAMES}::test_names_that_differ_in_case_alone_are_two_files_everywhere",
        f"{_NAMES}::test_a_file_name_stays_inside_the_run",
    ),
    "a child forked while a run is written": (
        f"{_TOGETHER}::test_a_forked_child_does_not_keep_the_lock_of_a_writer",
        f"{_TOGETHER}::test_what_a_child_does_with_its_parents_writer_leaves_the_parents_alone",
        f"{_TOGETHER}::test_a_pool_that_was_forked_while_a_run_was_written_does_not_keep_it",
    ),
    "the folder removed, moved or begun anew under a writer": (
        f"{_TOGETHER}::test_a_folder_that_is_no_longer_the_writers_is_noticed_and_left_alone",
        f"{_TOGETHER}::test_the_error_of_a_with_block_is_heard_though_the_folder_is_gone",
    ),
    "verify beside a writer that replaces files": (
        f"{_TOGETHER}::test_verify_beside_a_writer_that_amends_and_trains_finds_nothing",
        f"{_TOGETHER}::test_verify_beside_a_writer_still_names_what_is_wrong",
        f"{_TOGETHER}::test_a_run_that_is_removed_while_it_is_verified_has_no_faults",
    ),
    "sparse files of 10 GB, in 700 MB of memory": (
        f"{_BOUNDS}::test_sparse_files_of_ten_gigabytes_are_refused_by_size_and_hide_no_other_run",
        f"{_BOUNDS}::test_a_checksum_of_a_gigabyte_is_taken_in_blocks",
    ),
    "headers of arrays that claim 2^34 to 10^30 rows": (
        f"{_BOUNDS}::test_a_header_that_claims_more_rows_than_the_file_has_is_refused",
        f"{_BOUNDS}::test_a_shape_that_is_none_is_refused",
    ),
    "Parquet of kilobytes that unfolds to gigabytes": (
        f"{_BOUNDS}::test_a_table_of_a_few_kilobytes_that_unfolds_to_gigabytes_is_refused",
        f"{_BOUNDS}::test_one_long_word_in_every_row_costs_its_length_once",
    ),
    "JSON of up to a million levels": (f"{_BOUNDS}::test_json_of_a_million_levels_is_refused",),
    "1e999, NaN and 400 digits in a header": (
        f"{_BOUNDS}::test_a_number_that_is_not_finite_reads_as_none_and_the_run_can_be_added_to",
    ),
    "a remote store loses a file, fails, sends gigabytes": (
        f"{_STORAGE}::test_a_file_that_vanishes_between_two_requests_is_a_run_error",
        f"{_STORAGE}::test_whatever_a_backend_returns_in_place_of_bytes_is_a_run_error",
        f"{_STORAGE}::test_a_remote_header_of_gigabytes_is_not_fetched_whole",
    ),
    "closed, full, ASCII and Latin-1 output": (
        f"{_SHELL}::test_a_closed_output_is_one_that_is_thrown_away",
        f"{_SHELL}::test_an_output_that_is_full_is_said_in_one_line",
        f"{_SHELL}::test_every_encoding_of_the_output_is_written_to",
    ),
    "python -O, -OO, -W error, -I; no HOME, no TMPDIR, a package one may not write to": (
        f"{_SHELL}::test_every_way_to_start_python_is_the_same",
        f"{_SHELL}::test_neither_home_nor_temporary_folder_is_needed",
        f"{_SHELL}::test_a_package_that_may_not_be_written_to_works",
    ),
    "paths of 300 and 6,000 characters, --size 1000000": (
        f"{_SHELL}::test_what_is_too_long_or_too_large_is_refused_in_one_line",
    ),
    "Ctrl-C at twelve moments of a command": (
        f"{_SHELL}::test_an_interrupt_at_any_moment_ends_in_one_line_at_most",
    ),
    "foreign Host and Origin at the dashboard": (
        f"{_SERVER}::test_it_serves_until_it_is_interrupted",
        f"{_SERVER}::test_it_answers_to_the_names_of_this_machine_and_to_its_own_pages_alone",
    ),
    "Markdown, HTML and TeX in every string of a run, on nine pages": (
        f"{_PAGES}::TestHostileRuns::test_every_string_of_a_run_stays_text",
        f"{_PAGES}::TestHostileRuns::test_names_are_text_on_every_page",
    ),
    "variants called mha__v2 and the like": (
        f"{_PAGES}::TestHostileRuns::test_any_variant_can_be_looked_at",
    ),
}


def rows() -> Iterator[tuple[str, int, int]]:
    """Each attack with its tries and how many were survived; a skipped case is no try."""
    tried, survived = _counted([test for tests in ATTACKS.values() for test in tests])
    for attack, tests in ATTACKS.items():
        names = [test.rpartition("::")[2] + test.partition("::")[0] for test in tests]
        yield attack, sum(tried[name] for name in names), sum(survived[name] for name in names)


def _counted(tests: list[str]) -> tuple[Counter[str], Counter[str]]:
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cases.xml"
        words = ["-m", "pytest", "-q", "-n", "2", "-o", "junit_family=xunit1", f"--junitxml={out}"]
        subprocess.run([sys.executable, *words, *tests], cwd=ROOT, stdout=subprocess.DEVNULL)
        for case in ElementTree.parse(out).iter("testcase"):
            outcome = {child.tag for child in case}
            name = case.attrib["name"].partition("[")[0] + case.attrib["file"]
            tried[name] += "skipped" not in outcome
            survived[name] += not outcome & {"failure", "error", "skipped"}
    return tried, survived
