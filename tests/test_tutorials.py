"""Tutorials run whole, as a reader runs them, and print the numbers that their text speaks of."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def run(name, folder):
    command = [sys.executable, str(TUTORIALS / f"{name}.py"), "picture.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def drawn(folder):
    assert matplotlib.image.imread(folder / "picture.png").std() > 0.1


@pytest.mark.slow
def test_01_first_posterior(tmp_path):
    printed = run("01_first_posterior", tmp_path)
    assert printed.count("verdict: approximate") == 3
    sds = [
        tuple(map(float, m)) for m in re.findall(r"sd of the curve (\d+) francs at the median income, (\d+)", printed)
    ]
    (point, point_beyond), (_, mean_field_beyond), (middle, beyond) = sds
    assert point == point_beyond == 0  # a point has no epistemic uncertainty
    assert beyond > 1.5 * mean_field_beyond > 0  # the text: mean field is too sure of itself beyond the data
    growth = float(re.search(r"the epistemic sd grows (\S+) times", printed).group(1))
    assert 2.5 < growth < 12 and growth == pytest.approx(beyond / middle, rel=0.1)
    lpd = [float(v) for v in re.findall(r"test_lpd (\S+) ±", printed)]
    assert lpd == pytest.approx([-5.86] * 3, abs=0.08)  # the text: held-out scores hardly tell the three apart
    drawn(tmp_path)


@pytest.mark.slow
def test_02_svi_or_nuts(tmp_path):
    printed = run("02_svi_or_nuts", tmp_path)
    assert re.findall(r"verdict: (.*)", printed) == ["approximate", "approximate", "converged"]
    gradients = list(map(int, re.findall(r": (\d+) gradients", printed)))
    assert gradients[0] == gradients[1] and gradients[2] > 3 * gradients[0]  # what NUTS costs
    table = {
        name: list(map(float, re.search(rf"^{name} +(.*)$", printed, re.M).group(1).split()))
        for name in ("exact", "mean-field SVI", "full-rank SVI", "NUTS")
    }
    exact, narrow, full, nuts = (np.array(table[name]) for name in table)
    for means in (narrow[:2], full[:2], nuts[:2]):  # the text: the means agree
        assert means == pytest.approx(exact[:2], abs=0.05)
    assert nuts[2:4] == pytest.approx(exact[2:4], rel=0.1) and nuts[4] == pytest.approx(exact[4], abs=0.08)
    assert full[2:4] == pytest.approx(exact[2:4], rel=0.2) and full[4] == pytest.approx(exact[4], abs=0.1)
    conditional = float(re.search(r"if the others were known: (\S+)", printed).group(1))
    assert narrow[2] == pytest.approx(conditional, rel=0.15) and narrow[2] < 0.8 * exact[2]  # the bias it should have
    assert abs(narrow[4]) < 0.1 < 0.5 < -exact[4]
    days = re.findall(r"epistemic sd of the loss, (.*): a usual day (\S+), an unusual day (\S+)", printed)
    odd = {name: float(unusual) for name, _, unusual in days}
    assert odd["NUTS"] == pytest.approx(odd["exact"], rel=0.12) == pytest.approx(odd["full-rank SVI"], rel=0.25)
    assert odd["mean-field SVI"] < 0.8 * odd["exact"]
    drawn(tmp_path)


@pytest.mark.slow
def test_03_classifier(tmp_path):
    printed = run("03_classifier", tmp_path)
    assert printed.count("verdict: approximate") == 2
    accuracy = [float(v) for v in re.findall(r"test_accuracy (\S+) ±", printed)]
    assert min(accuracy) > 0.95 and accuracy[0] == pytest.approx(accuracy[1], abs=0.02)
    for name in ("map", "svi"):
        confidence, right = re.search(rf"^{name}: confidence (\S+) on average, right (\S+) of", printed, re.M).groups()
        assert float(confidence) < float(right)  # the text: both are less sure than they could be
        total, epistemic, aleatoric = map(
            float,
            re.search(rf"^{name}: entropy (\S+) nats = epistemic (\S+) \+ aleatoric (\S+)$", printed, re.M).groups(),
        )
        assert total == pytest.approx(epistemic + aleatoric, abs=0.002)
        assert (epistemic == 0) == (name == "map")
    right, wrong = map(
        float, re.search(r"epistemic entropy of right answers (\S+), of wrong ones (\S+)", printed).groups()
    )
    assert wrong > 2 * right
    cases = {
        (case, name): tuple(map(float, numbers))
        for case, name, *numbers in re.findall(
            r"^(.*), (map|svi): accuracy (\S+), confidence (\S+), epistemic (\S+)$", printed, re.M
        )
    }
    assert len(cases) == 16
    for name in ("map", "svi"):
        turned = cases["turned by 90 degrees", name]
        assert turned[0] < 0.15 and turned[1] > 0.75  # the text: wrong nine times in ten, and sure of it
    assert cases["turned by 90 degrees", "map"][1] > cases["turned by 90 degrees", "svi"][1]
    still, middle, far = (cases[f"turned by {a} degrees", "svi"][2] for a in (0, 30, 90))
    assert middle > 2 * still and middle > 1.5 * far  # epistemic entropy rises and falls again
    drawn(tmp_path)


@pytest.mark.slow
def test_04_your_own_data(tmp_path):
    printed = run("04_your_own_data", tmp_path)
    refused = re.findall(r"^refused: (.*)$", printed, re.M)
    assert len(refused) == 3
    assert "'value'" in refused[0] and "missing='impute'" in refused[0]
    assert "'Ford'" in refused[1] and "'capital'" in refused[2]
    assert re.search(r"^warning: .*'currency' is the same in all rows", printed, re.M)
    columns = re.search(r"columns the model sees: (.*)", printed).group(1).split(", ")
    assert (
        sum(c.startswith("firm=") for c in columns) == 11 and "value=missing" in columns and "currency" not in columns
    )
    assert "verdict: approximate" in printed
    scores = re.findall(r"^(noise by row|one noise): test_rmse (\S+) ± \S+, test_lpd (\S+) ± (\S+),", printed, re.M)
    rmse, lpd, error = ({name: float(row[i]) for name, *row in scores} for i in range(3))
    assert lpd["noise by row"] - lpd["one noise"] > 3 * error["noise by row"]
    assert rmse["one noise"] < rmse["noise by row"] < 120  # the text: not a better mean; investments go from 1 to 1500
    found = {
        case: list(map(float, numbers))
        for case, *numbers in re.findall(
            r"^(.*): invests (\S+), 90 % from (\S+) to (\S+); epistemic sd (\S+), aleatoric sd (\S+) million",
            printed,
            re.M,
        )
    }
    for mean, low, high, _, _ in found.values():
        assert low < mean < high
    known, gap, far = (found[case] for case in ("value known", "value missing", "capital far from all rows"))
    assert gap[2] - gap[1] < 0.5 * (known[2] - known[1])  # the text: less was known, and the interval is narrower
    assert far[4] > 5 * known[4] and 0.8 < far[3] / known[3] < 2  # noise beyond all sense; epistemic hardly grows
    folds = re.search(r"three folds: (.*)", printed).group(1).split(", ")
    assert len(folds) == 3 and all(0.7 < float(v) < 1 for v in folds)
    drawn(tmp_path)


@pytest.mark.slow
def test_05_your_own_program(tmp_path):
    printed = run("05_your_own_program", tmp_path)
    assert re.search(r"^ShapeError: step, site 'y': expected y of shape \(80,\), got \(80, 1\)", printed, re.M)
    low, high, least, most = map(
        float, re.search(r"prior: flows from (\S+) to (\S+) \(90 %\); observed from (\S+) to (\S+)", printed).groups()
    )
    assert low < least < most < high < 3 * most  # wide, but not absurd
    falls = float(re.search(r"the flow falls with probability (\S+);", printed).group(1))
    assert falls == pytest.approx(0.5, abs=5 * 0.5 / 2000**0.5)  # the prior is symmetric; 2000 draws
    assert re.findall(r"verdict: (.*)", printed) == ["converged", "approximate", "approximate"]
    years = [tuple(map(float, m)) for m in re.findall(r": year (\S+) ± (\S+), change of flow (\S+) ± (\S+)", printed)]
    assert len(years) == 3
    for year, sd, change, spread in years:
        assert 1894 < year < 1903 and sd < 8 and change < -3 * spread  # the known date is 1898-1899
    nuts, full, independent = (sd for _, sd, _, _ in years)
    assert independent < full < nuts and independent < 0.8 * nuts  # the text: guides are too sure of the year
    (step, line) = (
        list(map(float, re.search(rf"^{name} +(-\d.*)$", printed, re.M).group(1).split())) for name in ("step", "line")
    )
    assert step[0] - line[0] == pytest.approx(line[2], abs=0.02) and line[2] > line[3]
    drawn(tmp_path)


@pytest.mark.slow
def test_06_priors(tmp_path):
    printed = run("06_priors", tmp_path)
    spread = np.array([
        list(map(float, re.search(rf"^sd {sd}, {kind} +(.*)$", printed, re.M).group(1).split()))
        for kind in ("scaled", "unscaled") for sd in ("0.3", "1", "3")
    ])  # fmt: skip
    scaled, unscaled = spread[:3], spread[3:]
    assert (abs(scaled[:, 1:3] / scaled[:, :1] - 1) < 0.25).all()  # the text: the number of units does not matter
    assert (abs(scaled[:, 3] / scaled[:, 1] - 1) < 0.25).all()
    assert (unscaled[:, 2] / unscaled[:, 0] > 6).all() and (unscaled[:, 2] / unscaled[:, 0] < 13).all()  # about ten
    sure = [
        tuple(map(float, m))
        for m in re.findall(r"in (\d+) % of cases; entropy of the average (\S+) nats, of a function (\S+)", printed)
    ]
    (narrow, *_), (middle, *_), (wide, _, certain) = sure
    assert narrow < 3 and middle < 5 and wide > 60  # the text: 0 or 1 in most cases
    assert all(mean == pytest.approx(np.log(2), abs=0.03) for _, mean, _ in sure)  # all average to a half
    assert certain < 0.2 < 0.45 < sure[1][2] < sure[0][2]
    off, bare = (float(re.search(rf"{said} is off by (\S+)", printed).group(1)) for said in ("map", "penalty"))
    assert off < 1e-5 and bare > 0.05
    gradients = [tuple(map(float, m)) for m in re.findall(r"off by (\S+), the largest entry is (\S+)", printed)]
    (same, largest), (different, _) = gradients
    assert same < 1e-9 * largest and different > 1e-4 * largest
    rows = {
        int(n): list(map(float, m))
        for n, *m in re.findall(
            r"^(\d+) rows: .* 0\.01 (\S+), at 10 (\S+), at the best of all (\S+); chosen by evidence, (\S+), (\S+)$",
            printed, re.M,
        )
    }  # fmt: skip
    cost = {n: (best - low, best - high, best - chosen) for n, (low, high, best, _, chosen) in rows.items()}
    assert cost[15][1] > 0.3 > 0.1 > cost[60][1] > 0.01 > cost[354][1]  # with more rows a wide prior no longer matters
    assert min(c[0] for c in cost.values()) > 0.15  # and a narrow one still does
    assert all(c[2] < 0.05 for c in cost.values())  # the choice by evidence costs a few hundredths
    table = {
        float(sd): list(map(float, m))
        for sd, *m in re.findall(r"^(0\.1|0\.3|1\.0|3\.0|10\.0) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", printed, re.M)
    }
    evidence, held_out, error, alone, training = (dict(zip(table, c)) for c in zip(*table.values(), strict=True))
    assert len(table) == 5 and max(evidence, key=evidence.get) == max(held_out, key=held_out.get) == 1.0
    assert held_out[0.1] < held_out[1.0] - 5 * error[1.0]  # too narrow under-fits,
    assert training[0.1] < training[1.0] - 0.3
    assert list(training.values()) == sorted(training.values()) and training[10.0] > -0.1  # too wide is over-confident
    assert alone[10.0] < alone[1.0] - 0.25 and alone[10.0] < held_out[10.0] - 0.05 < held_out[1.0] - 0.1
    by_hand = [float(v) for v in re.findall(r"(?:0\.3|1|3): (-\d+\.\d)", printed.split("logistic, log evidence")[1])]
    tuned, w = map(float, re.search(r"^tuned: (\S+), with sd (\S+) of weights", printed, re.M).groups())
    assert len(by_hand) == 3 and tuned >= max(by_hand) - 0.05 and 0.3 < w < 3
    drawn(tmp_path)


@pytest.mark.slow
def test_07_what_mean_field_misses(tmp_path):
    printed = run("07_what_mean_field_misses", tmp_path)

    def table(title):
        """Numbers of a printed table, by row."""
        lines = iter(printed.split(f"\n{title}\n")[1].splitlines()[1:])
        found = {}
        for line in lines:
            row = re.match(r"(.*?)((?: +-?\d+\.\d+)+)$", line)
            if not row:
                return found
            found[row.group(1).strip()] = np.array(row.group(2).split(), float)
        return found

    weights = table("sd of each weight, divided by its exact one")
    predicted = weights.pop("1 / sqrt(diag precision)")
    assert predicted.max() < 0.35 and weights["mean-field"] == pytest.approx(predicted, rel=0.2, abs=0.01)
    assert weights["Laplace"] == pytest.approx(1, abs=0.08)  # 5 standard errors of 2000 draws
    assert weights["NUTS"] == pytest.approx(1, abs=0.15) and weights["full-rank"] == pytest.approx(1, abs=0.25)

    evidence, laplace = (
        float(re.search(rf"log evidence, {name}: (\S+)", printed).group(1)) for name in ("exact", "Laplace")
    )
    assert laplace == pytest.approx(evidence, abs=0.0011)  # printed to three places
    elbos = {
        name: tuple(map(float, (elbo, short, error))) + ((float(closed),) if closed else ())
        for name, elbo, short, error, closed in re.findall(
            r"^(.*): ELBO (\S+), short by (\S+) ± ([\d.]+)(?:, KL in closed form (\S+))?$", printed, re.M
        )
    }
    for elbo, short, *_ in elbos.values():
        assert elbo + short == pytest.approx(evidence, abs=0.0021)
    for name in ("mean-field", "full-rank"):
        _, short, error, closed = elbos[name]
        assert short == pytest.approx(closed, abs=5 * error + 0.001)
    assert elbos["Laplace"][1:] == (0.0, 0.0)  # the same number at each draw
    least = float(re.search(r"the least KL that independent normals can have: (\S+) nats", printed).group(1))
    assert 4 < least < elbos["mean-field"][3] < 1.1 * least and 0 < elbos["full-rank"][3] < 0.2

    sums = {
        name: list(map(float, numbers))
        for name, *numbers in re.findall(r"^(\w+): sum over rows (\S+) = (\d+) - (\S+)$", printed, re.M)
    }
    for total, count, variances in sums.values():
        assert total == pytest.approx(count - variances, abs=0.0011)
    assert sums["independent"][0] > sums["exact"][0] + 0.5
    last = table("last layer: epistemic sd, divided by the exact one")
    assert last["Laplace"] == pytest.approx(1, abs=0.08) and last["NUTS"] == pytest.approx(1, abs=0.15)
    assert last["full-rank"] == pytest.approx(1, abs=0.2)
    assert 1.03 < last["mean-field"][0] < 1.3 and last["mean-field"][1:].max() < 0.5

    verdicts = re.findall(r"^(.*): verdict: (.*)$", printed, re.M)
    assert [v for n, v in verdicts if n != "ChEES"] == ["approximate"] * 4
    raw = re.search(r"R-hat, the worst of each site: (.*)", printed).group(1)
    assert min(float(v.split()[1]) for v in raw.split(", ")) > 1.05
    r_hat, ess = map(float, re.search(r"the worst in the gap: (\S+); ESS at least (\S+)", printed).groups())
    assert r_hat < 1.02 and ess > 400
    whole = table("network: epistemic sd, divided by that of ChEES")
    narrow, full, hessian, default = (
        whole[name] for name in ("mean-field", "full-rank", "Laplace", "Laplace, default")
    )
    assert narrow[0] > 1.02 and narrow[2] < 0.5 < 0.6 < full[2] < 0.9  # the text: beyond the rows by far less
    assert narrow[2] < narrow[1] < 0.85 and full[0] > 1.02 and full[1] < 0.95
    assert hessian == pytest.approx(1, abs=0.2) and 1.7 < default[1] < 2.7
    assert default[2] > 3 * narrow[2]
    drawn(tmp_path)


@pytest.mark.slow
def test_08_epistemic_and_aleatoric(tmp_path):
    printed = run("08_epistemic_and_aleatoric", tmp_path)
    grown = {
        int(n): tuple(map(float, m))
        for n, *m in re.findall(r"^(20|60|200|600|2000) +(\S+) +(\S+) +(\d\S+)$", printed, re.M)
    }
    assert len(grown) == 5 and all(n * e == pytest.approx(ne, rel=0.05) for n, (e, ne, _) in grown.items())
    true = float(re.search(r"true noise variance, mean over x: (\S+)", printed).group(1))
    assert grown[2000][2] == pytest.approx(true, rel=0.1) == pytest.approx(grown[600][2], rel=0.15)
    slope = float(re.search(r"to the power (\S+)", printed).group(1))
    assert -1.1 < slope < -0.7  # about 1 / rows, and a little slower
    assert grown[2000][0] < grown[20][0] / 30
    louder = {k: float(v) for k, v in re.findall(r"twice the noise sd: (\w+) variance times (\S+)", printed)}
    assert louder["aleatoric"] == pytest.approx(4, rel=0.1) and louder["epistemic"] == pytest.approx(4, rel=0.3)
    noise = [
        float(v)
        for line in re.findall(r"noise sd at x = .*", printed)
        for v in re.findall(r"(?:true|learnt) ([\d.]+)", line)
    ]
    assert len(noise) == 12 and noise[1::2] == pytest.approx(noise[::2], rel=0.15, abs=0.011)
    names = ("ChEES", "Laplace", "mean-field SVI", "ensemble, anchored", "ensemble", "MAP")
    found = {
        name: np.array(list(map(float, re.search(rf"^{name} +(\d.*|NaN.*)$", printed, re.M).group(1).split())))
        for name in names
    }
    chees, laplace, mean_field, anchored, ensemble, point = (found[name] for name in names)
    assert chees[1] > 3 * chees[0] and min(chees[2:4]) > 3 * chees[0]  # doubt rises in the gap and beyond all rows
    assert (abs(laplace[:4] / chees[:4] - 1) < 0.4).all()
    assert mean_field[0] > 1.1 * chees[0] and max(mean_field[2:4]) < mean_field[0] < 0.5 * mean_field[1]
    assert mean_field[4] < 0.8 * chees[4] and max(mean_field[2:4]) < 0.4 * min(chees[2:4])
    assert (ensemble[:4] < 0.5 * chees[:4]).all() and (ensemble[1:4] > 3 * ensemble[0]).all()
    assert (anchored[:4] > 2 * ensemble[:4])[:2].all() and (anchored[2:4] < 0.8 * chees[2:4]).all()
    assert (point[:4] == 0).all() and np.isnan(point[4])
    assert anchored[5] == pytest.approx(ensemble[5], rel=0.2) and mean_field[5] > 1.05 * chees[5]
    entropies = {
        (int(n), float(x)): tuple(map(float, m))
        for n, x, *m in re.findall(
            r"^(\d+) rows, x = (\S+), .*: entropy (\S+) = epistemic (\S+) \+ aleatoric (\S+); true entropy (\S+)$",
            printed, re.M,
        )
    }  # fmt: skip
    assert len(entropies) == 6
    for total, epistemic, aleatoric, _ in entropies.values():
        assert total == pytest.approx(epistemic + aleatoric, abs=0.0021) and epistemic > 0
    few, many = entropies[60, 0.0], entropies[2000, 0.0]
    assert few[1] > 5 * many[1] and many[2] == pytest.approx(np.log(2), abs=0.03)  # a fair coin: aleatoric alone
    assert entropies[60, 0.8][2] > 3 * entropies[60, 0.8][3]  # 60 rows: what it calls aleatoric is far above the truth
    assert entropies[2000, 0.8][2] < 2 * entropies[2000, 0.8][3]
    assert entropies[60, 4.0][1] > 2 * few[1]  # doubt beyond the rows,
    assert entropies[2000, 4.0][0] < 0.25  # and with many rows the classifier is sure there
    drawn(tmp_path)
