"""Statistics as pure functions over arrays: intervals, exact tests, power. Each names its source.

What a result means, in words, is in ``app.compare.verdicts``. ``scipy.special`` is imported when first needed
(``scipy.stats`` costs a second and 60 MB). Methods that the coverage simulation did not choose live in
benchmarks/interval_coverage.py. Unless said otherwise arguments may be numbers or arrays that broadcast, and results are
float64.
"""

from app.statistics.agreement import ClassDifferences, Kappa, class_differences, kappa, majority_vote
from app.statistics.calibration import CalibrationError, calibration_error
from app.statistics.paired import (
    fewest_images_for_margin,
    holm,
    images_needed,
    mcnemar_p,
    paired_interval,
    smallest_detectable_difference,
    tost_paired,
)
from app.statistics.proportions import t_interval, wilson_interval
from app.statistics.quantiles import LEVEL, POWER, Floats, normal_quantile, t_p_value, t_quantile
from app.statistics.seeds import (
    RecipeInterval,
    SeedTest,
    false_alarm_rate,
    paired_t,
    recipe_interval,
    satterthwaite,
    seeds_needed,
    tost_seeds,
    welch_t,
)
from app.statistics.selection import best_of_n_optimism

__all__ = [
    "LEVEL",
    "POWER",
    "CalibrationError",
    "ClassDifferences",
    "Floats",
    "Kappa",
    "RecipeInterval",
    "SeedTest",
    "best_of_n_optimism",
    "calibration_error",
    "class_differences",
    "false_alarm_rate",
    "fewest_images_for_margin",
    "holm",
    "images_needed",
    "kappa",
    "majority_vote",
    "mcnemar_p",
    "normal_quantile",
    "paired_interval",
    "paired_t",
    "recipe_interval",
    "satterthwaite",
    "seeds_needed",
    "smallest_detectable_difference",
    "t_interval",
    "t_p_value",
    "t_quantile",
    "tost_paired",
    "tost_seeds",
    "welch_t",
    "wilson_interval",
]
