"""On the servers' path in tests only: NIXL's progress thread rests 1,000 us between its rounds.

`nixl_agent` sets `pthrDelay` to 0, which spins a core for each server, and has no option for it. The class
that it makes is wrapped when its module is imported.
"""

import importlib.machinery
import sys

PAUSE_US = 1000


class _Slower:
    def find_spec(self, name, path=None, target=None):
        package, _, last = name.rpartition(".")
        if last != "_bindings" or not package.startswith("nixl"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            make = module.nixlAgent

            def slower(agent_name, config):
                config.pthrDelay = PAUSE_US
                return make(agent_name, config)

            module.nixlAgent = slower

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Slower())
