//! What can be typed.
//!
//! [`Cli`] is exactly what was typed; nothing here reads a file or the environment. The flags are few, because a run is
//! one recipe: `--set` changes any key of it.

#![expect(
    clippy::doc_markdown,
    reason = "doc comments are the help text, where backticks would be seen"
)]

pub(crate) mod checkpoint;

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use sterna_recipe::Override;

use self::checkpoint::{Checkpoint, Export};

/// Fine-tune Hugging Face models on very long sequences, from a YAML recipe.
///
/// Sterna takes the recipes of ArcticTraining (`type: sft`). The sequence is split over processes, or GPUs, by Ulysses
/// sequence parallelism; weights, gradients and optimizer state by ZeRO.
#[derive(Debug, Parser)]
#[command(name = "sterna", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  sterna check recipe.yaml                         What would run, and what memory it takes
  sterna train recipe.yaml                         Train
  sterna train recipe.yaml --hostfile hosts        Train on several hosts
  sterna train recipe.yaml --set train_iters=100   Train with a key of the recipe changed

Exit status: 0 success, 1 training failed, 2 something is wrong with the recipe or the command line,
130 interrupted.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The first word after `sterna`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(Train),
    Launch(Launch),
    Check(Check),
    Data(Data),
    Checkpoint(Checkpoint),
    Export(Export),
    /// What `sterna train` starts over ssh on each host of a hostfile: starts ranks as it is told over stdin
    #[command(hide = true)]
    Agent,
}

/// Train the model of a recipe.
///
/// Starts one process for each rank that shares a sequence (`sequence_parallel_size`), or as many as you say, here or on
/// the hosts of a hostfile, and ends them all if one fails. Inside torchrun, or anything else that sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
/// MASTER_ADDR and MASTER_PORT, it is the rank that these describe and starts nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sterna train recipe.yaml
  sterna train recipe.yaml --num_gpus 8
  sterna train recipe.yaml --hostfile hosts
  sterna train recipe.yaml --set optimizer.learning_rate=2e-5 --set data.max_length=32_000
  torchrun --no-python --nproc-per-node 8 sterna train recipe.yaml

Use --help for the arguments that `arctic_training` and `deepspeed` take.")]
#[command(after_long_help = "\
Examples:
  sterna train recipe.yaml
  sterna train recipe.yaml --num_gpus 8
  sterna train recipe.yaml --hostfile hosts
  sterna train recipe.yaml --set optimizer.learning_rate=2e-5 --set data.max_length=32_000
  torchrun --no-python --nproc-per-node 8 sterna train recipe.yaml

Environment:
  OMP_NUM_THREADS   CPU threads of each rank; by default the cores are divided evenly
  OMP_WAIT_POLICY, GOMP_SPINCOUNT
                    How these wait for work; by default they soon sleep
  STERNA_BF16_PRODUCTS
                    How a CPU multiplies bf16: by its own instructions (bf16), or in fp32 with
                    one rounding (fp32); by default as the processor is faster
  AT_LOG_LEVEL      Log level where the recipe has no logger.level
  HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE
                    Where models and data sets of the hub come from")]
pub(crate) struct Train {
    /// The recipe, a YAML file
    pub(crate) recipe: PathBuf,

    /// Processes to start on each host; by default its slots, or its GPUs, or sequence_parallel_size
    ///
    /// With twice as many, twice as many sequences are trained on at a time. On a CPU they are simply processes.
    #[arg(
        long = "num_gpus",
        value_name = "N",
        value_parser = parse_count_or_all,
        allow_negative_numbers = true,
        visible_aliases = ["num-gpus", "num_accelerators", "nproc-per-node"],
        aliases = ["num-accelerators", "nproc_per_node"],
    )]
    num_gpus: Option<Count>,

    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,

    /// Start all ranks again after a failure, at most N times in all
    ///
    /// They go on from the newest good checkpoint: the recipe must have one with `auto_resume`. A mistake in the recipe
    /// and an interrupt are not failures.
    #[arg(long = "max-restarts", alias = "max_restarts", value_name = "N", default_value_t = 0)]
    pub(crate) max_restarts: usize,

    /// How long ranks may save after SIGTERM, Ctrl-C or SIGUSR1 before they are killed
    ///
    /// A second signal kills them at once.
    #[arg(
        long = "stop-within",
        alias = "stop_within",
        value_name = "SECONDS",
        default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(..=31_536_000)
    )]
    pub(crate) stop_within: u64,

    #[command(flatten)]
    pub(crate) overrides: Overrides,

    #[command(flatten)]
    pub(crate) arctic: Arctic,
}

impl Train {
    /// Processes to start on each host, if that was said.
    pub(crate) fn num_gpus(&self) -> Option<usize> {
        self.num_gpus.and_then(|count| count.0)
    }
}

/// Train as `train` does, or show what that would start.
///
/// Takes the arguments of `train`. With --print nothing is started: the ssh command for each host, the variables that its
/// ranks are given (secrets as `***`), and the command of each rank are written to stdout.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sterna launch recipe.yaml --hostfile hosts --print")]
pub(crate) struct Launch {
    /// Show the commands, and start nothing
    #[arg(long)]
    pub(crate) print: bool,

    #[command(flatten)]
    pub(crate) train: Train,
}

/// Show what a recipe means, or everything that is wrong with it.
///
/// Prints the resolved plan: the mesh of ranks, the model, what is split how, the steps, and the memory that each rank
/// needs. Reads the recipe and the model's config.json; starts nothing and writes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sterna check recipe.yaml
  sterna check recipe.yaml --world-size 8 --device cuda
  sterna check recipe.yaml --format json | jq .memory")]
pub(crate) struct Check {
    /// The recipe, a YAML file
    pub(crate) recipe: PathBuf,

    /// Ranks in all; by default the recipe's sequence_parallel_size
    #[arg(long, value_name = "N", value_parser = parse_count, alias = "world_size")]
    pub(crate) world_size: Option<usize>,

    /// What the ranks compute on, which this machine need not have
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,

    /// How to print the plan
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,

    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// Show the training data as the model sees it, or write the batches of each rank.
///
/// With --show or --html, the sequences that training starts with: as text with the trained tokens marked, and then what
/// was read, dropped, packed and padded.
///
/// With --steps and --out, `rank0.jsonl`, `rank1.jsonl`, ... in the output folder, one line a micro-batch, with the keys
/// `input_ids`, `labels` (with sequence parallelism `shift_labels`), `position_ids` and `packed_sample_seqlens`.
#[derive(Debug, Args)]
#[command(override_usage = "\
sterna data [OPTIONS] <RECIPE> --show <N>
       sterna data [OPTIONS] <RECIPE> --html <FILE>
       sterna data [OPTIONS] <RECIPE> --steps <N> --out <DIR>")]
#[command(group(ArgGroup::new("preview").args(["show", "html"]).multiple(true)))]
#[command(after_help = "\
Examples:
  sterna data recipe.yaml --show 3
  sterna data recipe.yaml --html data.html
  sterna data recipe.yaml --world-size 2 --steps 4 --out batches")]
pub(crate) struct Data {
    /// The recipe, a YAML file
    pub(crate) recipe: PathBuf,

    /// Print the first N packs, or samples if they are not packed, in the order of training
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) show: Option<usize>,

    /// Write them to this file as one web page instead; 10 without --show
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Tokens to show of a document; of a longer one, its start and its end
    #[arg(
        long = "show-tokens",
        alias = "show_tokens",
        value_name = "T",
        value_parser = parse_count,
        default_value_t = 2000,
        requires = "preview"
    )]
    pub(crate) show_tokens: usize,

    /// Ranks in all; by default the recipe's sequence_parallel_size
    #[arg(long, value_name = "W", value_parser = parse_count, alias = "world_size")]
    pub(crate) world_size: Option<usize>,

    /// Micro-batches to write for each rank
    #[arg(
        long,
        value_name = "N",
        value_parser = parse_count,
        required_unless_present = "preview",
        conflicts_with_all = ["show", "html"]
    )]
    pub(crate) steps: Option<usize>,

    /// Folder to write to; made if it does not exist
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "preview",
        conflicts_with_all = ["show", "html"]
    )]
    pub(crate) out: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// Changes to the recipe.
#[derive(Debug, Args)]
pub(crate) struct Overrides {
    /// Set a key of the recipe; the value is YAML. May be repeated
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub(crate) set: Vec<Override>,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// CUDA where this machine has it, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// NVIDIA GPUs, one for each process
    Cuda,
}

/// How `sterna check` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Arguments that users of `arctic_training` and of the `deepspeed` launcher type. Those that ask for something that
/// Sterna does not do are refused by [`Arctic::refusal`], never ignored.
#[derive(Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an argument by itself")]
#[command(next_help_heading = "Arguments of arctic_training and deepspeed")]
pub(crate) struct Arctic {
    /// train, or process-data to fill the data cache and stop
    #[arg(long, value_enum, default_value_t = Mode::Train, hide_short_help = true)]
    pub(crate) mode: Mode,

    /// Port of the rendezvous between the processes; by default a free one
    #[arg(
        long = "master_port",
        alias = "master-port",
        value_name = "PORT",
        hide_short_help = true
    )]
    pub(crate) master_port: Option<u16>,

    /// Address of the rendezvous between the processes; by default how ssh reaches the first host
    #[arg(
        long = "master_addr",
        alias = "master-addr",
        value_name = "HOST",
        hide_short_help = true
    )]
    pub(crate) master_addr: Option<String>,

    /// Say nothing about starting processes
    #[arg(long, short, hide_short_help = true)]
    pub(crate) quiet: bool,

    /// Hosts to run on, one a line: `node-1 slots=8`; each is reached by ssh
    #[arg(long, short = 'H', value_name = "FILE")]
    pub(crate) hostfile: Option<PathBuf>,

    /// Hosts and slots of the hostfile to use, as node-1@node-2:0,2; without one, localhost:0,2
    #[arg(long, short, value_name = "HOSTS", hide_short_help = true)]
    pub(crate) include: Option<String>,

    /// Hosts and slots of the hostfile to leave out
    #[arg(long, short, value_name = "HOSTS", hide_short_help = true)]
    pub(crate) exclude: Option<String>,

    /// Hosts to use, the first of the hostfile; or how many start their own ranks with --no_ssh
    #[arg(
        long = "num_nodes",
        alias = "num-nodes",
        value_name = "N",
        value_parser = parse_count_or_all,
        hide_short_help = true,
        allow_negative_numbers = true
    )]
    num_nodes: Option<Count>,

    /// Start only the ranks of this host: the command runs on every host, with its --node_rank
    #[arg(long = "no_ssh", alias = "no-ssh", hide_short_help = true)]
    pub(crate) no_ssh: bool,

    /// Number of this host, with --no_ssh; a Kubernetes indexed job knows it
    #[arg(
        long = "node_rank",
        alias = "node-rank",
        value_name = "N",
        hide_short_help = true,
        allow_negative_numbers = true
    )]
    pub(crate) node_rank: Option<i64>,

    /// Port of sshd on the hosts, where it is not what ~/.ssh/config says
    #[arg(long = "ssh_port", alias = "ssh-port", value_name = "PORT", hide_short_help = true)]
    pub(crate) ssh_port: Option<u16>,

    /// Use ssh even if there is only this host
    #[arg(long = "force_multi", hide_short_help = true)]
    pub(crate) force_multi: bool,

    /// Only deepspeed, which is this launcher
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    launcher: Option<String>,

    /// Only disable
    #[arg(
        long = "python_profile",
        alias = "python-profile",
        value_name = "KIND",
        hide_short_help = true
    )]
    python_profile: Option<String>,

    /// Accepted: every host is checked when it is reached, whatever this says
    #[arg(long = "no_ssh_check", hide_short_help = true)]
    no_ssh_check: bool,

    /// Accepted: ranks are told by LOCAL_RANK
    #[arg(long = "no_local_rank", hide_short_help = true)]
    no_local_rank: bool,

    #[arg(
        long = "local_rank",
        alias = "local-rank",
        value_name = "N",
        hide = true,
        allow_negative_numbers = true
    )]
    pub(crate) local_rank: Option<i64>,
    #[arg(
        long = "min_elastic_nodes",
        value_name = "N",
        hide = true,
        allow_negative_numbers = true
    )]
    min_elastic_nodes: Option<i64>,
    #[arg(
        long = "max_elastic_nodes",
        value_name = "N",
        hide = true,
        allow_negative_numbers = true
    )]
    max_elastic_nodes: Option<i64>,
    #[arg(long = "elastic_training", hide = true)]
    elastic_training: bool,
    #[arg(long = "launcher_args", value_name = "ARGS", hide = true, allow_hyphen_values = true)]
    launcher_args: Option<String>,
    #[arg(long = "module", hide = true)]
    module: bool,
    #[arg(long = "no_python", hide = true)]
    no_python: bool,
    #[arg(long = "venv_script", value_name = "FILE", hide = true)]
    venv_script: Option<PathBuf>,
    #[arg(long = "save_pid", hide = true)]
    save_pid: bool,
    #[arg(long = "enable_each_rank_log", value_name = "DIR", hide = true)]
    enable_each_rank_log: Option<String>,
    #[arg(long, value_name = "KIND", hide = true)]
    autotuning: Option<String>,
    #[arg(long = "bind_cores_to_rank", hide = true)]
    bind_cores_to_rank: bool,
    #[arg(long = "bind_core_list", value_name = "LIST", hide = true)]
    bind_core_list: Option<String>,
    #[arg(long = "log_level", value_name = "LEVEL", hide = true)]
    log_level: Option<String>,
}

/// `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    #[default]
    Train,
    ProcessData,
}

/// An argument that was understood and cannot be followed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The argument as documented, with its dashes.
    pub(crate) argument: &'static str,
    /// Why, as the end of a sentence that starts with the argument.
    pub(crate) reason: &'static str,
    /// What to do instead.
    pub(crate) instead: &'static str,
}

const NO_PYTHON: &str = "is about a Python script, and sterna runs none";
const LEAVE_OUT: &str = "leave it out";

impl Arctic {
    /// Hosts to use, if that was said.
    pub(crate) fn num_nodes(&self) -> Option<usize> {
        self.num_nodes.and_then(|count| count.0)
    }

    /// An argument that says where ranks are to be started, if there is one.
    pub(crate) fn argument_of_launchers(&self) -> Option<&'static str> {
        let has_several = self.num_nodes().is_some_and(|nodes| nodes > 1);
        let checks = [
            (self.hostfile.is_some(), "--hostfile"),
            (self.include.is_some(), "--include"),
            (self.exclude.is_some(), "--exclude"),
            (self.force_multi, "--force_multi"),
            (has_several, "--num_nodes"),
            (self.master_addr.is_some(), "--master_addr"),
            (self.master_port.is_some(), "--master_port"),
            (self.ssh_port.is_some(), "--ssh_port"),
        ];
        checks.into_iter().find(|(is_there, _)| *is_there).map(|(_, argument)| argument)
    }

    /// The first argument that asks for something that is not done. A default value that was typed out asks for nothing.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let other_than = |value: Option<i64>, accepted: &[i64]| {
            value.is_some_and(|value| !accepted.contains(&value))
        };
        let checks = [
            (
                self.launcher.as_deref().is_some_and(|name| name != "deepspeed"),
                "--launcher",
                "takes only `deepspeed`, which means this command's own launcher",
                "leave it out, or start `sterna train RECIPE` under torchrun, srun or mpirun with torchrun's variables set",
            ),
            (
                self.launcher_args.as_deref().is_some_and(|args| !args.trim().is_empty()),
                "--launcher_args",
                "is for launchers other than this command's own",
                LEAVE_OUT,
            ),
            (
                self.elastic_training
                    || other_than(self.min_elastic_nodes, &[-1])
                    || other_than(self.max_elastic_nodes, &[-1]),
                "--elastic_training",
                "asks for runs that change their size, which sterna does not do",
                LEAVE_OUT,
            ),
            (
                self.autotuning.as_deref().is_some_and(|kind| !kind.is_empty()),
                "--autotuning",
                "is not done by sterna",
                LEAVE_OUT,
            ),
            (
                self.python_profile.as_deref().is_some_and(|kind| kind != "disable"),
                "--python_profile",
                NO_PYTHON,
                "profile the process itself, for example with `perf record -g sterna train RECIPE`",
            ),
            (self.module, "--module", NO_PYTHON, LEAVE_OUT),
            (self.no_python, "--no_python", NO_PYTHON, LEAVE_OUT),
            (self.venv_script.is_some(), "--venv_script", NO_PYTHON, LEAVE_OUT),
            (
                self.save_pid,
                "--save_pid",
                "is not done by sterna",
                "the shell knows the process id: `echo $!`",
            ),
            (
                self.enable_each_rank_log.as_deref().is_some_and(|dir| dir != "None"),
                "--enable_each_rank_log",
                "is not done by sterna",
                "set `logger.output_dir` in the recipe: every rank then writes `logs/rank_N.log` there",
            ),
            (
                self.bind_cores_to_rank || self.bind_core_list.is_some(),
                "--bind_cores_to_rank",
                "is not done by sterna yet",
                "set OMP_NUM_THREADS, or bind the processes with `taskset`",
            ),
            (
                self.log_level.as_deref().is_some_and(|level| level != "info"),
                "--log_level",
                "sets the log level of the deepspeed launcher",
                "set `logger.level` in the recipe, or AT_LOG_LEVEL; `--quiet` silences the launcher",
            ),
        ];
        checks
            .into_iter()
            .find(|(is_refused, ..)| *is_refused)
            .map(|(_, argument, reason, instead)| Refusal { argument, reason, instead })
    }
}

/// A number, or none for -1, which stands for all in the DeepSpeed launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count(Option<usize>);

fn parse_count_or_all(text: &str) -> Result<Count, String> {
    if text == "-1" { Ok(Count(None)) } else { parse_count(text).map(|count| Count(Some(count))) }
}

/// A number of ranks or steps.
fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("found `{text}`, required is a whole number from 1")),
        Ok(count) => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// What is typed after `sterna train recipe.yaml`.
    fn train(args: &str) -> Train {
        let all = ["sterna", "train", "recipe.yaml"].into_iter().chain(args.split_whitespace());
        match Cli::try_parse_from(all).unwrap().command {
            Command::Train(train) => train,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_spelling_of_the_number_of_processes_means_the_same() {
        for name in [
            "num_gpus",
            "num-gpus",
            "num_accelerators",
            "num-accelerators",
            "nproc-per-node",
            "nproc_per_node",
        ] {
            assert_eq!(train(&format!("--{name} 4")).num_gpus(), Some(4), "{name}");
            assert_eq!(train(&format!("--{name}=4")).num_gpus(), Some(4), "{name}");
        }
    }

    #[test]
    fn minus_one_says_nothing_about_how_many() {
        let train = train("--num_gpus=-1 --num_nodes -1");
        assert_eq!((train.num_gpus(), train.arctic.num_nodes()), (None, None));
    }

    #[test]
    fn what_asks_for_something_that_is_not_done_is_refused_by_name() {
        for (args, name) in [
            ("--launcher ray", "--launcher"),
            ("--launcher_args=-x", "--launcher_args"),
            ("--elastic_training", "--elastic_training"),
            ("--min_elastic_nodes 1", "--elastic_training"),
            ("--autotuning tune", "--autotuning"),
            ("--python_profile cumtime", "--python_profile"),
            ("--module", "--module"),
            ("--no_python", "--no_python"),
            ("--venv_script env.sh", "--venv_script"),
            ("--save_pid", "--save_pid"),
            ("--enable_each_rank_log logs", "--enable_each_rank_log"),
            ("--bind_core_list 0-3", "--bind_cores_to_rank"),
            ("--log_level debug", "--log_level"),
        ] {
            assert_eq!(
                train(args).arctic.refusal().map(|refusal| refusal.argument),
                Some(name),
                "{args}"
            );
        }
    }

    #[test]
    fn a_default_that_is_typed_out_asks_for_nothing() {
        for args in [
            "",
            "--num_nodes -1",
            "--num_nodes 1 --node_rank 0",
            "--node_rank -1",
            "--launcher deepspeed --launcher_args=",
            "--min_elastic_nodes -1 --max_elastic_nodes -1",
            "--python_profile disable --no_local_rank --no_ssh --no_ssh_check --log_level info",
            "--enable_each_rank_log None --master_port 29500 --master_addr localhost -q",
        ] {
            assert_eq!(train(args).arctic.refusal(), None, "{args}");
        }
    }
}
