"""Abseil's targets that Berth uses, and the libraries of Debian's libabsl-dev behind each."""

ABSL_TARGETS = {
    "absl/algorithm:container": [],
    "absl/base:core_headers": [],
    "absl/cleanup:cleanup": [],
    "absl/container:flat_hash_map": ["-labsl_raw_hash_set", "-labsl_hash"],
    "absl/container:flat_hash_set": ["-labsl_raw_hash_set", "-labsl_hash"],
    "absl/container:inlined_vector": [],
    "absl/functional:any_invocable": [],
    "absl/functional:function_ref": [],
    "absl/random:random": [
        "-labsl_random_distributions",
        "-labsl_random_seed_sequences",
        "-labsl_random_internal_pool_urbg",
        "-labsl_random_internal_randen",
        "-labsl_random_internal_randen_hwaes",
        "-labsl_random_internal_randen_slow",
    ],
    "absl/status:status": ["-labsl_status", "-labsl_cord"],
    "absl/status:statusor": ["-labsl_statusor", "-labsl_status", "-labsl_cord"],
    "absl/strings:cord": ["-labsl_cord", "-labsl_cordz_info", "-labsl_cord_internal", "-labsl_strings"],
    "absl/strings:str_format": ["-labsl_str_format_internal", "-labsl_strings"],
    "absl/strings:strings": ["-labsl_strings", "-labsl_int128", "-labsl_throw_delegate"],
    "absl/time:time": ["-labsl_time", "-labsl_time_zone", "-labsl_int128"],
    "absl/types:span": ["-labsl_throw_delegate"],
}
