# potstill: rows in, verified rows out. Here: config, includes, targets. The rules are in workflow/rules/.
#
#   {output_dir}/{run}/prepared/…                       rows with their identity and conversation, in N chunks
#   {output_dir}/{run}/{model}/{stage}/{chunk}.jsonl    one file a chunk for each stage that is on (.jsonl.zst in large runs)
#   {output_dir}/{run}/{model}/merged.jsonl …           each row in one of merged, rejected, failed, not_asked
#   {output_dir}/{run}/logs/{rule}/  benchmarks/{rule}/
#   {answers_dir}/…                                     every paid answer, for good: no output of any rule
from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


# The demo's config, unless the user names one: Snakemake would merge the two, key by key.
# (A module's `config:` replaces it anyway.)
if not workflow.overwrite_configfiles:

    configfile: workflow.source_path("config/config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/gold.smk"
include: "workflow/rules/variants.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/clean.smk"
include: "workflow/rules/execute.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/filter.smk"
include: "workflow/rules/merge.smk"
include: "workflow/rules/stats.smk"
include: "workflow/rules/config.smk"
include: "workflow/rules/reports.smk"
include: "workflow/rules/page.smk"
include: "workflow/rules/cascade.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/student.smk"


rule all:
    default_target: True
    input:
        PLAN.targets(),


onstart:
    # The DAG stands: it is set aside, and garbage is collected from here on.
    gc.freeze()
    gc.enable()


onsuccess:
    write_log(PLAN)
    print(describe_results(PLAN), file=sys.stderr)


onerror:
    write_log(PLAN)
