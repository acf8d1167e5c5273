"""What campaigns share: trials that depend on their number alone, a state that is gone on with, a line at the end."""

import pytest
from campaign import Campaign


def test_a_campaign_goes_on_where_it_stopped_with_the_same_random_numbers(tmp_path, capsys):
    def drawn(goal, state):
        campaign = Campaign("dice", 4, ["--goal", str(goal), "--state", str(tmp_path / state), "--seed", "3"])
        numbers = [campaign.random(trial).random() for trial in campaign.trials()]
        campaign.count("throws", len(numbers))
        return numbers, campaign.end(f"{campaign.counts['throws']} throws", "4 throws"), capsys.readouterr().out

    first, _, _ = drawn(3, "parts")
    rest, code, line = drawn(4, "parts")
    assert (len(first), len(rest), code, line) == (3, 1, 0, "| dice | 4 throws | 4 throws | reached |\n")
    assert first + rest == drawn(4, "whole")[0]


def test_no_time_leaves_trials_open_and_is_no_miss(tmp_path, capsys):
    campaign = Campaign("dice", 4, ["--minutes", "0", "--state", str(tmp_path)])
    assert list(campaign.trials()) == []
    assert campaign.end("0 throws", "4 throws") == 0
    assert capsys.readouterr().out == "| dice | 0 throws | 4 throws | held so far (0 of 4) |\n"


def test_there_is_one_trial_however_long_the_preparation_took(tmp_path):
    campaign = Campaign("dice", 4, ["--minutes", "1e-9", "--state", str(tmp_path)])
    assert list(campaign.trials()) == [0]
    assert list(Campaign("dice", 4, ["--minutes", "1e-9", "--state", str(tmp_path)]).trials()) == [0]  # the state was not saved


def test_a_fault_is_kept_and_ends_in_exit_code_1(tmp_path, capsys):
    campaign = Campaign("dice", 1, ["--state", str(tmp_path)])
    for _ in campaign.trials():
        campaign.fault("fell off the table")
    assert campaign.end("1 fault", "no fault") == 1
    assert capsys.readouterr() == ("| dice | 1 fault | no fault | missed |\n", "trial 0: fell off the table\n")
    assert (tmp_path / "faults.txt").read_text() == "trial 0: fell off the table\n"
    assert Campaign("dice", 1, ["--state", str(tmp_path)]).end("1 fault", "no fault") == 1  # also when run again


def test_a_state_of_another_seed_is_refused(tmp_path, capsys):
    Campaign("dice", 1, ["--state", str(tmp_path)]).save()
    with pytest.raises(SystemExit) as stopped:
        Campaign("dice", 1, ["--state", str(tmp_path), "--seed", "1"])
    assert stopped.value.code == 2 and "is of dice with seed 0" in capsys.readouterr().err
