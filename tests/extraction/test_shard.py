import h5py
import pytest
from conftest import red_noise, write_cutouts

from nenya.errors import OptionError
from nenya.extraction.shard import find_shard, share


@pytest.mark.parametrize("count", range(1, 9))
def test_shares_are_all_of_the_list_once_whatever_its_order(count):
    names = [f"{i}.h5" for i in range(7)]
    shares = [share(list(reversed(names)), i, count) for i in range(count)]
    assert sorted(name for part in shares for name in part) == names
    assert shares == [share(names, i, count) for i in range(count)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


SLURM = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_STEP": "2",
}


@pytest.mark.parametrize(
    ("shard", "data", "env", "expected"),
    [
        ("2/5", "a.h5", SLURM, (2, 5)),
        (None, "*.h5", SLURM, (3, 4)),
        (None, ["a.h5", "b.h5"], SLURM, (3, 4)),
        (None, "s3://b/in/", SLURM, (3, 4)),
        (None, "a.h5", SLURM, (0, 1)),  # an array of files, one named to each task
        (None, "s3://b/in/a.h5", SLURM, (0, 1)),
        (None, "*.h5", {"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "3"}, (1, 3)),
        (None, "*.h5", {}, (0, 1)),
    ],
)
def test_the_shard_of_a_worker(shard, data, env, expected):
    assert find_shard(shard, data, env) == expected


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "-1/3", "0/0", "1/2/3", ""])
def test_no_shard(shard):
    with pytest.raises(OptionError, match=r"i/n with i from 0 to n-1"):
        find_shard(shard, "*.h5", {})


def test_half_a_job_index():
    with pytest.raises(OptionError, match="JOB_COMPLETIONS is not: set it"):
        find_shard(None, "*.h5", {"JOB_COMPLETION_INDEX": "1"})


@pytest.mark.parametrize(
    "env",
    [
        {"JOB_COMPLETION_INDEX": "7", "JOB_COMPLETIONS": "2"},
        {"JOB_COMPLETION_INDEX": "x", "JOB_COMPLETIONS": "2"},
        {**SLURM, "SLURM_ARRAY_TASK_ID": "x"},
        {**SLURM, "SLURM_ARRAY_TASK_ID": "99"},
    ],
)
def test_an_environment_that_cannot_be(env):
    with pytest.raises(OptionError, match=r"(JOB_COMPLETION_INDEX|SLURM_ARRAY_TASK_ID)=\w+.*shard=i/n"):
        find_shard(None, "*.h5", env)


def test_workers_share_the_files(nenya_cli, tiny_weights, tmp_path, monkeypatch):
    for name in "abcde":
        write_cutouts(tmp_path / f"{name}.h5", valid=red_noise(2))
    args = ["model=demo", f"data={tmp_path}/*.h5", f"ckpt={tiny_weights}", "trainer.accelerator=cpu"]
    code, said = nenya_cli("extract", [*args, "shard=1/3"])
    assert code == 0, said
    assert "shard 1/3: 2 of 5 files" in said
    assert sorted(p.name for p in tmp_path.glob("*_latents.h5")) == ["b_latents.h5", "e_latents.h5"]
    for name, value in {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "3"}.items():
        monkeypatch.setenv(name, value)
    assert nenya_cli("extract", args)[0] == 0
    assert sorted(p.name[0] for p in tmp_path.glob("*_latents.h5")) == ["a", "b", "d", "e"]
    code, said = nenya_cli("extract", [*args, "shard=17/20"])
    assert code == 0, said
    with h5py.File(tmp_path / "d_latents.h5") as file:
        assert file["valid"].shape == (2, 64)
