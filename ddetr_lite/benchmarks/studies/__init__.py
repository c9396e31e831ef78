"""Models trained and compared by one method: the papers' figures and tables at small scale.

`plan` says what a study is and which runs it wants, `training` runs them, `results` reads their logs, `table` and `figure` show
what came out; the studies themselves are in `convergence`, `tables` and `coco_mini`.
"""

from ddetr_lite.benchmarks.studies.coco_mini import COCO_MINI, COCO_MINI_CPU
from ddetr_lite.benchmarks.studies.convergence import CONVERGENCE, CONVERGENCE_ADAMW, CONVERGENCE_CELLS
from ddetr_lite.benchmarks.studies.tables import LEAD_CPU, TABLE_1, TABLE_1_CPU, TABLE_2, TABLE_2_CPU

STUDIES = {
    study.name: study
    for study in (
        CONVERGENCE,
        CONVERGENCE_ADAMW,
        CONVERGENCE_CELLS,
        TABLE_1,
        TABLE_1_CPU,
        LEAD_CPU,
        TABLE_2,
        TABLE_2_CPU,
        COCO_MINI,
        COCO_MINI_CPU,
    )
}
