"""Prints what a run did as one JSON document: plays, their tasks, each host's result, and the statistics.

The callback `json` does the same, and is not part of ansible-core.
"""

import json

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "collected"

    def __init__(self):
        super().__init__()
        self.plays = []

    def v2_playbook_on_play_start(self, play):
        self.plays.append({"tasks": []})

    def v2_playbook_on_task_start(self, task, is_conditional):
        self.plays[-1]["tasks"].append({"hosts": {}})

    def v2_runner_on_ok(self, result):
        tasks = self.plays[-1]["tasks"]
        if not tasks:
            tasks.append({"hosts": {}})
        tasks[-1]["hosts"][result._host.get_name()] = result._result

    def v2_runner_on_failed(self, result, ignore_errors=False):
        result._result["failed"] = True
        self.v2_runner_on_ok(result)

    def v2_runner_on_unreachable(self, result):
        self.v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result):
        self.v2_runner_on_ok(result)

    def v2_playbook_on_stats(self, stats):
        hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        self._display.display(json.dumps({"plays": self.plays, "stats": hosts}, default=str))
