"The services of a run start within its process and leave nothing behind."

from collections.abc import Callable
from datetime import date

import psutil

from tradenb.core.settings import Settings
from tradenb.trading.services import running


def test_services_that_ended_keep_no_file_open(make_settings: Callable[..., Settings]):
    "A backfill starts them once for every session: what each kept would add up to the system's limit."
    settings = make_settings(**{"demo.symbols": 10, "demo.years": 1})
    open_files = []
    for _ in range(3):
        with running(settings, date(2019, 1, 3)):
            pass
        ours = [file.path for file in psutil.Process().open_files() if file.path.startswith(str(settings.root))]
        open_files.append(sum("tradenb.db" in path for path in ours))
    assert open_files[0] == open_files[1] == open_files[2] == 0
