#!/usr/bin/python
"""Brings a backend of the balancer into the state that an Ansible task names."""

DOCUMENTATION = r"""
module: balancer_backend
short_description: Drains, readies, adds and removes backends of the balancer
description:
  - Runs C(balancer) on the balancer's host, as root or as a member of the control socket's group. In a fleet, run the
    module on one member.
  - Waits until the backend has reached I(state), for no longer than I(wait_timeout).
options:
  backend:
    description: Service and backend, such as C(web/web1).
    required: true
    type: str
  state:
    description:
      - A C(ready) backend takes clients; a C(drained) backend keeps its clients until its drain ends and takes no new
        clients; C(absent) drains and removes the backend.
    choices: [ready, drained, absent]
    default: ready
    type: str
  address:
    description: The backend's address, or address and port. Required to add a backend; ignored if the backend exists.
    type: str
  address6:
    description: The backend's IPv6 address, if the service has listeners of both families.
    type: str
  weight:
    description: The backend's share of new clients, 0 to 65535. Without this option the weight stays unchanged.
    type: int
  drain_timeout:
    description: How long a drain keeps clients, such as C(5m). The default is the service's setting.
    type: str
  force:
    description: Whether C(absent) removes the backend without a drain.
    default: false
    type: bool
  wait:
    description: Whether to wait until the backend has reached I(state).
    default: true
    type: bool
  wait_timeout:
    description: How long to wait, such as C(10m). After this time the task fails, but the change stays.
    default: 10m
    type: str
  socket:
    description: The control socket. The default is the default of C(balancer).
    type: path
  executable:
    description: Name or path of the program C(balancer).
    default: balancer
    type: str
"""

EXAMPLES = r"""
- name: Take web1 out of service before it is deployed
  balancer_backend:
    backend: web/{{ inventory_hostname }}
    state: drained
    drain_timeout: 5m
  delegate_to: lb1

- name: Return web1 to service
  balancer_backend:
    backend: web/{{ inventory_hostname }}
    state: ready
  delegate_to: lb1
"""

RETURN = r"""
backend:
  description: The backend as C(balancer backend list --json) shows it; empty after its removal.
  type: dict
  returned: always
"""

import json
import time

from ansible.module_utils.basic import AnsibleModule

# The exit code of `balancer wait` after a timeout.
TIMED_OUT = 4
# The exit code of a change that some members of a fleet do not apply yet.
NOT_BY_ALL = 5
# The maximum time in seconds until the balancer has removed a drained backend.
REMOVAL = 10


class Balancer:
    """Runs the program balancer for the backend of a task."""

    def __init__(self, module):
        self.module = module
        self.backend = module.params["backend"]
        program = module.get_bin_path(module.params["executable"], required=True)
        self.command = [program]
        if module.params["socket"]:
            self.command += ["--socket", module.params["socket"]]

    def run(self, arguments):
        """Runs a command, and returns its exit code, its output, and its error message."""
        code, out, err = self.module.run_command(self.command + arguments)
        return code, out, (err or out).strip()

    def does(self, arguments):
        """Runs a command that has to succeed, and returns its output."""
        code, out, words = self.run(arguments)
        if code not in (0, NOT_BY_ALL):
            self.module.fail_json(msg="balancer %s: %s" % (" ".join(arguments), words), rc=code)
        return out

    def shown(self):
        """Returns the present backend; None if it does not exist."""
        service, name = self.backend.split("/", 1)
        backends = json.loads(self.does(["backend", "list", service, "--json"]))
        return next((backend for backend in backends if backend["name"] == name), None)

    def wait(self, state):
        """Waits for a state, for no longer than the task's wait_timeout."""
        limit = self.module.params["wait_timeout"]
        code, _, words = self.run(["wait", self.backend, state, "--timeout", limit])
        if code == TIMED_OUT:
            shown = self.shown()
            self.module.fail_json(
                msg="%s is not %s after %s, but %s" % (self.backend, state, limit, shown["state"] if shown else "removed"),
                rc=code,
                changed=True,
                backend=shown or {},
            )
        # The balancer removes a backend without clients at once.
        removed = code != 0 and self.module.params["state"] == "absent" and self.shown() is None
        if code != 0 and not removed:
            self.module.fail_json(msg=words, rc=code)

    def wait_removed(self):
        """Waits until the balancer has removed a drained backend."""
        deadline = time.monotonic() + REMOVAL
        while self.shown():
            if time.monotonic() > deadline:
                self.module.fail_json(msg="%s is drained, but still there after %d s" % (self.backend, REMOVAL), changed=True)
            time.sleep(0.1)


def commands(params, shown):
    """Returns the commands that lead to the wanted state, and a problem that prevents it."""
    backend, state = params["backend"], params["state"]
    if state == "absent":
        return ([["backend", "remove", backend] + (["--force"] if params["force"] else [])] if shown else []), None
    wanted = []
    if shown is None:
        if state == "drained":
            return [], "there is no backend %s, so it cannot be drained" % backend
        if not params["address"]:
            return [], "there is no backend %s; say its address to add it" % backend
        add = ["backend", "add", backend, params["address"]]
        if params["address6"]:
            add += ["--address6", params["address6"]]
        if params["weight"] is not None:
            add += ["--weight", str(params["weight"])]
        return [add], None
    if state == "ready" and shown["admin"] != "ready":
        wanted.append(["backend", "ready", backend])
    if state == "drained" and shown["admin"] == "ready":
        drain = ["backend", "drain", backend]
        if params["drain_timeout"]:
            drain += ["--timeout", params["drain_timeout"]]
        wanted.append(drain)
    if params["weight"] not in (None, shown["weight"]):
        wanted.append(["backend", "weight", backend, str(params["weight"])])
    return wanted, None


def main():
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["ready", "drained", "absent"], "default": "ready"},
            "address": {"type": "str"},
            "address6": {"type": "str"},
            "weight": {"type": "int"},
            "drain_timeout": {"type": "str"},
            "force": {"type": "bool", "default": False},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "str", "default": "10m"},
            "socket": {"type": "path"},
            "executable": {"type": "str", "default": "balancer"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["backend"].count("/") != 1:
        module.fail_json(msg="backend is %r: write it as service/name, such as web/web1" % params["backend"])
    balancer = Balancer(module)
    shown = balancer.shown()
    wanted, problem = commands(params, shown)
    if problem:
        module.fail_json(msg=problem)
    if module.check_mode:
        module.exit_json(changed=bool(wanted), backend=shown or {})
    for arguments in wanted:
        balancer.does(arguments)
    # A backend in maintenance keeps no clients, so there is no drain to wait for.
    in_maintenance = shown is not None and shown["admin"] == "maint" and params["state"] == "drained"
    if params["wait"] and not in_maintenance and (shown or wanted):
        balancer.wait("up" if params["state"] == "ready" else "drained")
        if params["state"] == "absent":
            balancer.wait_removed()
    module.exit_json(changed=bool(wanted), backend=balancer.shown() or {})


if __name__ == "__main__":
    main()
