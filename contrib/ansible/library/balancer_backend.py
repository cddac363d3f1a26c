#!/usr/bin/python
"""A backend of the balancer, as Ansible wants it."""

DOCUMENTATION = r"""
module: balancer_backend
short_description: Drains, readies, adds and removes backends of the balancer
description:
  - Runs C(balancer) on the balancer's host, as root or as a member of the control socket's group. In a fleet, one member
    is enough.
  - Waits until the backend is in the state that is wanted, for no longer than I(wait_timeout).
options:
  backend:
    description: Service and backend, such as C(web/web1).
    required: true
    type: str
  state:
    description:
      - C(ready) takes clients, C(drained) keeps the clients that it has until its drain ends and takes no new ones,
        C(absent) is drained and removed.
    choices: [ready, drained, absent]
    default: ready
    type: str
  address:
    description: Its address, or address and port. Needed to add it; an address that is there is not changed.
    type: str
  address6:
    description: Its IPv6 address, where the service has listeners of both families.
    type: str
  weight:
    description: Its share of new clients, 0 to 65535; absent, it stays as it is.
    type: int
  drain_timeout:
    description: How long a drain keeps clients, such as C(5m); absent, as the service says.
    type: str
  force:
    description: Whether C(absent) removes it without a drain.
    default: false
    type: bool
  wait:
    description: Whether to wait for the state.
    default: true
    type: bool
  wait_timeout:
    description: How long to wait, such as C(10m). The task fails after that; the change stays.
    default: 10m
    type: str
  socket:
    description: The control socket; absent, the program's own choice.
    type: path
  executable:
    description: The program.
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

- name: Put it back
  balancer_backend:
    backend: web/{{ inventory_hostname }}
    state: ready
  delegate_to: lb1
"""

RETURN = r"""
backend:
  description: The backend as C(balancer backend list --json) shows it; absent after it was removed.
  type: dict
  returned: always
"""

import json
import time

from ansible.module_utils.basic import AnsibleModule

# Exit code of a wait that has timed out.
TIMED_OUT = 4
# Seconds in which a drained backend is removed.
REMOVAL = 10


class Balancer:
    """The program, and the backend that a task is about."""

    def __init__(self, module):
        self.module = module
        self.backend = module.params["backend"]
        program = module.get_bin_path(module.params["executable"], required=True)
        self.command = [program]
        if module.params["socket"]:
            self.command += ["--socket", module.params["socket"]]

    def run(self, arguments):
        """Exit code and words."""
        code, out, err = self.module.run_command(self.command + arguments)
        return code, out, (err or out).strip()

    def does(self, arguments):
        """Runs a command that has to succeed, and gives its output."""
        code, out, words = self.run(arguments)
        if code != 0:
            self.module.fail_json(msg="balancer %s: %s" % (" ".join(arguments), words), rc=code)
        return out

    def shown(self):
        """The backend as it is; None if there is none."""
        service, name = self.backend.split("/", 1)
        backends = json.loads(self.does(["backend", "list", service, "--json"]))
        return next((backend for backend in backends if backend["name"] == name), None)

    def wait(self, state):
        """Waits for a state, but not for longer than the task says."""
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
        # A backend without clients is removed at once.
        removed = code != 0 and self.module.params["state"] == "absent" and self.shown() is None
        if code != 0 and not removed:
            self.module.fail_json(msg=words, rc=code)

    def wait_removed(self):
        """Waits until a backend that has been drained is removed."""
        deadline = time.monotonic() + REMOVAL
        while self.shown():
            if time.monotonic() > deadline:
                self.module.fail_json(msg="%s is drained, but still there after %d s" % (self.backend, REMOVAL), changed=True)
            time.sleep(0.1)


def commands(params, shown):
    """What must be run for the state that is wanted, and what is missing for it."""
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
    # Maintenance keeps no clients, so that there is no drain to wait for.
    in_maintenance = shown is not None and shown["admin"] == "maint" and params["state"] == "drained"
    if params["wait"] and not in_maintenance and (shown or wanted):
        balancer.wait("up" if params["state"] == "ready" else "drained")
        if params["state"] == "absent":
            balancer.wait_removed()
    module.exit_json(changed=bool(wanted), backend=balancer.shown() or {})


if __name__ == "__main__":
    main()
