"""Clusters of latents: blobs that are known, seeds, blocks, noise, and the command's table, summary and figures."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.latents.clusters import (
    assign_kmeans,
    assign_nearest,
    hdbscan_clusters,
    kmeans_clusters,
    unit_rows,
)
from nenya.latents.components import fit_pca
from nenya.latents.files import Latents

DIM, SIZES = 12, (700, 500, 300, 100)


def blobs(seed=0, spread=0.08):
    """Directions with a little scatter, shuffled, with some NaN rows: latents float32 and their true cluster."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][: len(SIZES)]
    truth = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    rows = centres[truth] + spread * rng.standard_normal((len(truth), DIM))
    rows = (rows * rng.uniform(0.5, 2, (len(rows), 1))).astype(np.float32)  # lengths mean nothing
    rows[::97] = np.nan
    truth[::97] = -1
    return rows, truth


@pytest.fixture(scope="module")
def data():
    return blobs()


@pytest.mark.parametrize(
    "find",
    [
        lambda x: kmeans_clusters(x, 4, seed=1),
        lambda x: kmeans_clusters(x, 4, seed=1, sample=200),
        lambda x: hdbscan_clusters(x, seed=1, components=6),
        lambda x: hdbscan_clusters(x, seed=1, components=6, sample=600, min_size=10),
    ],
    ids=["kmeans", "kmeans of a small sample", "hdbscan", "hdbscan of a sample"],
)
def test_blobs_are_found_and_numbered_by_their_size(data, find):
    latents, truth = data
    clusters = find(latents)
    member = clusters.labels >= 0
    assert len(clusters.sizes) == 4 and clusters.left_out == np.isnan(latents[:, 0]).sum()
    assert (clusters.labels[truth < 0] == -1).all()
    assert (clusters.labels[member] == truth[member]).all()  # the truth too is numbered by size
    assert member.sum() >= 0.93 * (truth >= 0).sum()
    np.testing.assert_array_equal(clusters.sizes, np.bincount(clusters.labels[member]))


def test_what_is_said_of_the_groups_is_true(data):
    latents, _ = data
    clusters = kmeans_clusters(latents, 4, seed=3, members=5)
    unit = unit_rows(latents)
    for cluster in range(4):
        rows = np.flatnonzero(clusters.labels == cluster)
        mean = unit[rows].mean(axis=0)
        np.testing.assert_allclose(clusters.directions[cluster], mean / np.linalg.norm(mean), atol=1e-12)
        assert clusters.cohesion[cluster] == pytest.approx(np.linalg.norm(mean))
        order = rows[np.argsort(-(unit[rows] @ clusters.directions[cluster]))]
        assert clusters.closest[cluster].tolist() == order[:5].tolist()
        assert clusters.medoids[cluster] == order[0]
    member = clusters.labels >= 0
    assert clusters.silhouette == pytest.approx(silhouette_score(unit[member], clusters.labels[member]))
    assert np.average(clusters.silhouettes, weights=clusters.sizes) == pytest.approx(clusters.silhouette)


def test_the_seed_alone_says_the_labels():
    latents, _ = blobs(1, spread=0.5)  # clusters that run into each other
    one, two, other = (kmeans_clusters(latents, 6, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.closest, two.closest)
    assert (one.labels != other.labels).any()
    one, two = (hdbscan_clusters(blobs()[0], seed=5, sample=500) for _ in range(2))
    np.testing.assert_array_equal(one.labels, two.labels)


def test_k_means_is_nearly_as_good_as_all_at_once():
    latents, _ = blobs(2, spread=0.5)
    unit = unit_rows(latents)
    unit = unit[np.isfinite(unit[:, 0])]
    labels = kmeans_clusters(latents, 6, seed=0).labels
    labels = labels[labels >= 0]
    inertia = sum(((unit[labels == g] - unit[labels == g].mean(axis=0)) ** 2).sum() for g in range(6))
    assert inertia < 1.03 * KMeans(6, n_init=5, random_state=0).fit(unit).inertia_


@pytest.mark.parametrize("block", [1, 7, 1000, 10**6])
def test_other_blocks_change_no_assignment(block):
    latents, _ = blobs(3, spread=0.6)
    centres = np.random.default_rng(0).standard_normal((5, DIM)) * 0.5
    np.testing.assert_array_equal(assign_kmeans(latents, centres, block), assign_kmeans(latents, centres))
    unit = unit_rows(latents)
    known = np.isfinite(unit[:, 0])
    expected = ((unit[known][:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(assign_kmeans(latents, centres)[known], expected)
    pca = fit_pca(unit, 5)
    sample = pca.transform(unit[known][:300])
    labels = np.arange(300) % 4 - 1
    found = assign_nearest(latents, pca, sample, labels, block)
    np.testing.assert_array_equal(found, assign_nearest(latents, pca, sample, labels))
    np.testing.assert_array_equal(found[known][:300], labels)


def test_what_is_far_from_the_sample_is_noise(data):
    latents, _ = data
    far = np.concatenate([latents, -latents[1:4]])
    clusters = hdbscan_clusters(far, seed=0, components=8)
    assert (clusters.labels[-3:] == -1).all() and clusters.approximate
    assert not kmeans_clusters(far, 2).approximate


def test_what_cannot_be_grouped(data):
    latents, _ = data
    for k in (0, len(latents) + 1):
        with pytest.raises(OptionError, match=f"k={k}"):
            kmeans_clusters(latents, k)
    with pytest.raises(InputFileError, match="0 finite latents"):
        kmeans_clusters(np.full((9, 3), np.nan), 2)
    with pytest.raises(InputFileError, match="finds no cluster"):
        hdbscan_clusters(np.random.default_rng(0).standard_normal((60, 8)), min_size=30)
    with pytest.raises(OptionError, match="min_size=5"):
        hdbscan_clusters(np.eye(4), min_size=5)
    one = kmeans_clusters(latents, 1)
    assert np.isnan(one.silhouette) and one.sizes.tolist() == [(~np.isnan(latents[:, 0])).sum()]


# The command


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Cutouts, their latents and a table in another order, with two rows that have no latent."""
    folder = tmp_path_factory.mktemp("clusters")
    latents, truth = blobs()
    write_cutouts(folder / "a_preproc.h5", train=red_noise(1000, 8), valid=red_noise(600, 8, seed=1))
    write_cutouts(folder / "a_preproc_latents.h5", train=latents[:1000], valid=latents[1000:])
    table = Latents([folder / "a_preproc_latents.h5"]).keys()
    table["truth"], table["DT"], table["UID"] = truth, np.where(truth == 2, 3.0, 1.0), np.arange(1600) + 2**60
    table = table.sample(frac=1, random_state=0).reset_index(drop=True)
    table["pp_file"] = "s3://archive/" + table["pp_file"]
    table.loc[[5, 6], "pp_file"] = "unknown.h5"
    table.to_parquet(folder / "a.parquet")
    return folder


def test_the_command_writes_labels_a_summary_and_figures(files, tmp_path, nenya_cli):
    args = [f"data={files / 'a_preproc_latents.h5'}", f"table={files / 'a.parquet'}", "k=4", "members=4"]
    code, said = nenya_cli("clusters", [*args, f"images={files / 'a_preproc.h5'}", "out=here"])
    assert code == 0, said
    found = read_table(tmp_path / "here" / "a_clusters.parquet")
    before = read_table(files / "a.parquet")
    pd.testing.assert_frame_equal(found.drop(columns="cluster"), before)
    assert (found["cluster"].drop([5, 6]) == found["truth"].drop([5, 6])).all()
    assert (found.loc[[5, 6], "cluster"] == -1).all() and "placed 1598 of 1600 rows (2 without a latent" in said
    clusters = read_table(tmp_path / "here" / "a_clusters_groups.csv")
    assert clusters["mean_DT"].tolist() == [1, 1, 3, 1]
    for row in clusters.itertuples():
        medoid = before[before.UID == row.medoid_UID]
        assert medoid.pp_file.item() == row.medoid_pp_file  # the text of the table
        assert medoid.truth.item() == row.cluster and medoid.pp_idx.item() == row.medoid_pp_idx
    pictures = sorted((tmp_path / "here" / "a_clusters_groups").iterdir())
    assert [p.name for p in pictures] == [f"group_{i}.png" for i in range(4)]
    with Image.open(pictures[0]) as picture:
        assert picture.size[0] > 800
    code, said = nenya_cli("clusters", [*args, "out=here"])
    assert code == 2 and "clobber=true" in said


def test_the_command_without_a_table(files, tmp_path, nenya_cli):
    code, said = nenya_cli("clusters", [files / "a_preproc_latents.h5", "method=hdbscan", "out=h.csv", "components=6"])
    assert code == 0 and "approximation" in said, said
    found = read_table(tmp_path / "h.csv")
    assert list(found) == ["pp_file", "pp_type", "pp_idx", "cluster"] and len(found) == 1600
    scattered = write_cutouts(tmp_path / "n_latents.h5", train=blobs(1, spread=0.25)[0])
    said = nenya_cli("clusters", [scattered, "method=hdbscan", "out=n.csv", "components=6"])[1]
    found = read_table(tmp_path / "n.csv")
    noise = (found["cluster"] == -1).sum() - np.isnan(blobs()[0][:, 0]).sum()
    assert noise > 0 and re.search(rf"^ +-1 +{noise} +\S+ %  noise$", said, re.M), said
    code, said = nenya_cli("clusters", [files / "a_preproc_latents.h5"])
    assert code == 2 and "expected k=" in said
    other = write_cutouts(tmp_path / "b_preproc.h5", train=red_noise(4, 8))
    code, said = nenya_cli("clusters", [files / "a_preproc_latents.h5", "k=2", f"images={other}", "out=x.csv"])
    assert code == 2 and "no row of the table has a cutout" in said and not (tmp_path / "x.csv").exists()


def test_a_table_of_a_part_of_the_latents(files, tmp_path, nenya_cli):
    table = read_table(files / "a.parquet").drop([5, 6])
    part = table[(table.truth != 3) & (table.UID % 5 == 0)]
    part.to_parquet("part.parquet")
    code, said = nenya_cli("clusters", [f"data={files / 'a_preproc_latents.h5'}", "table=part.parquet", "k=4"])
    assert code == 0 and f"{1600 - len(part)} of 1600 latents have no row in the table" in said, said
    clusters = read_table(tmp_path / "outputs/clusters/part_clusters_groups.csv")
    assert clusters["rows_in_table"].tolist() == [(part.truth == cluster).sum() for cluster in range(4)]
    medoids = clusters.merge(part, left_on=["medoid_pp_type", "medoid_pp_idx"], right_on=["pp_type", "pp_idx"])
    assert medoids["truth"].tolist() == medoids["cluster"].tolist() == [0, 1, 2]
    assert clusters["medoid_UID"].isna().tolist() == [False] * 3 + [True]  # no row of the table is in it
    assert clusters["medoid_pp_file"].notna().all() and clusters["mean_DT"].isna().tolist() == [False] * 3 + [True]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(files, tmp_path, nenya_cli):
    (tmp_path / "plain").write_text("no folder")
    (tmp_path / "folder.csv").mkdir()
    latents = files / "a_preproc_latents.h5"
    for command, args in (("clusters", ["k=4"]), ("embed", []), ("search", ["like=1"])):
        for out, says in (("plain/x.csv", "plain is a file, no folder"), ("folder.csv", "folder.csv is a folder")):
            code, said = nenya_cli(command, [f"data={latents}", f"out={out}", *args])
            assert code == 2 and says in said and "out=" in said and len(said.splitlines()) == 1, said
    code, said = nenya_cli("metrics", [latents, "out=plain/x"])
    assert code == 2 and "plain is a file, no folder" in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    import subprocess
    import sys

    import h5py

    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from nenya.latents.clusters import kmeans_clusters, hdbscan_clusters\n"
        "from nenya.latents.files import Latents\nx = Latents([Path(sys.argv[1])])\nkmeans_clusters(x, 10, passes=1)\n"
        "hdbscan_clusters(x, sample=2000, min_size=20, components=8)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    rng = np.random.default_rng(0)
    for rows in (20_000, 400_000):
        with h5py.File(tmp_path / f"{rows}_latents.h5", "w") as file:
            # chunked, so that it is read and not mapped: mapped pages would count
            stored = file.create_dataset("train", (rows, 128), "f4", chunks=(1000, 128))
            centres = rng.standard_normal((5, 128))
            for start in range(0, rows, 20_000):
                cluster = rng.integers(0, 5, 20_000)
                stored[start : start + 20_000] = centres[cluster] + 0.2 * rng.standard_normal((20_000, 128))
        command = [sys.executable, "-c", script, tmp_path / f"{rows}_latents.h5"]
        peaks.append(int(subprocess.check_output(command, text=True).split()[-1]))
    assert peaks[1] - peaks[0] < 100, peaks  # MB; the rows take 205
