"""A repository whose targets stand for libraries that the system's packages installed."""

_LIBRARY = """
cc_library(
    name = {name},
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
"""

def _system_repository_impl(repository_ctx):
    packages = {}
    for label, linkopts in repository_ctx.attr.targets.items():
        package, _, name = label.rpartition(":")
        packages.setdefault(package, []).append(_LIBRARY.format(name = repr(name), linkopts = repr(linkopts)))
    for package, libraries in packages.items():
        path = package + "/BUILD.bazel" if package else "BUILD.bazel"
        repository_ctx.file(path, "".join(libraries))

system_repository = repository_rule(
    implementation = _system_repository_impl,
    attrs = {
        "targets": attr.string_list_dict(
            mandatory = True,
            doc = "From 'package:name' to the linker's options. Headers are in the compiler's own search path.",
        ),
    },
)
