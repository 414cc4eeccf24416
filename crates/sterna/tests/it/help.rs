//! What the command says about itself.

use insta::assert_snapshot;

use crate::workspace::Workspace;

#[test]
fn help_of_the_command() {
    assert_snapshot!(Workspace::new().show(&["--help"]), @r"
    exit status: 0
    ----- stdout -----
    Fine-tune Hugging Face models on very long sequences, from a YAML recipe.

    Sterna takes the recipes of ArcticTraining (`type: sft`). The sequence is split over processes, or
    GPUs, by Ulysses sequence parallelism; weights, gradients and optimizer state by ZeRO.

    Usage: sterna <COMMAND>

    Commands:
      train       Train the model of a recipe
      launch      Train as `train` does, or show what that would start
      check       Show what a recipe means, or everything that is wrong with it
      data        Show the training data as the model sees it, or write the batches of each rank
      checkpoint  List, check or export checkpoints
      export      Write a model as a folder that transformers, vLLM and others load

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Examples:
      sterna check recipe.yaml                         What would run, and what memory it takes
      sterna train recipe.yaml                         Train
      sterna train recipe.yaml --hostfile hosts        Train on several hosts
      sterna train recipe.yaml --set train_iters=100   Train with a key of the recipe changed

    Exit status: 0 success, 1 training failed, 2 something is wrong with the recipe or the command line,
    130 interrupted.
    ----- stderr -----
    ");
}

#[test]
fn help_of_train() {
    assert_snapshot!(Workspace::new().show(&["train", "-h"]), @r"
    exit status: 0
    ----- stdout -----
    Train the model of a recipe

    Usage: sterna train [OPTIONS] <RECIPE>

    Arguments:
      <RECIPE>  The recipe, a YAML file

    Options:
          --num_gpus <N>           Processes to start on each host; by default its slots, or its GPUs,
                                   or sequence_parallel_size [aliases: --num-gpus, --num_accelerators,
                                   --nproc-per-node]
          --device <DEVICE>        Where to compute [default: auto] [possible values: auto, cpu, cuda]
          --max-restarts <N>       Start all ranks again after a failure, at most N times in all
                                   [default: 0]
          --stop-within <SECONDS>  How long ranks may save after SIGTERM, Ctrl-C or SIGUSR1 before they
                                   are killed [default: 120]
          --set <KEY.PATH=VALUE>   Set a key of the recipe; the value is YAML. May be repeated
      -h, --help                   Print help (see more with '--help')

    Arguments of arctic_training and deepspeed:
      -H, --hostfile <FILE>  Hosts to run on, one a line: `node-1 slots=8`; each is reached by ssh

    Examples:
      sterna train recipe.yaml
      sterna train recipe.yaml --num_gpus 8
      sterna train recipe.yaml --hostfile hosts
      sterna train recipe.yaml --set optimizer.learning_rate=2e-5 --set data.max_length=32_000
      torchrun --no-python --nproc-per-node 8 sterna train recipe.yaml

    Use --help for the arguments that `arctic_training` and `deepspeed` take.
    ----- stderr -----
    ");
}

#[test]
fn long_help_of_train_has_the_arguments_of_arctic_training() {
    assert_snapshot!(Workspace::new().show(&["train", "--help"]), @r"
    exit status: 0
    ----- stdout -----
    Train the model of a recipe.

    Starts one process for each rank that shares a sequence (`sequence_parallel_size`), or as many as
    you say, here or on the hosts of a hostfile, and ends them all if one fails. Inside torchrun, or
    anything else that sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT,
    it is the rank that these describe and starts nothing.

    Usage: sterna train [OPTIONS] <RECIPE>

    Arguments:
      <RECIPE>
              The recipe, a YAML file

    Options:
          --num_gpus <N>
              Processes to start on each host; by default its slots, or its GPUs, or
              sequence_parallel_size
              
              With twice as many, twice as many sequences are trained on at a time. On a CPU they are
              simply processes.
              
              [aliases: --num-gpus, --num_accelerators, --nproc-per-node]

          --device <DEVICE>
              Where to compute

              Possible values:
              - auto: CUDA where this machine has it, else the CPU
              - cpu:  The CPU
              - cuda: NVIDIA GPUs, one for each process
              
              [default: auto]

          --max-restarts <N>
              Start all ranks again after a failure, at most N times in all
              
              They go on from the newest good checkpoint: the recipe must have one with `auto_resume`. A
              mistake in the recipe and an interrupt are not failures.
              
              [default: 0]

          --stop-within <SECONDS>
              How long ranks may save after SIGTERM, Ctrl-C or SIGUSR1 before they are killed
              
              A second signal kills them at once.
              
              [default: 120]

          --set <KEY.PATH=VALUE>
              Set a key of the recipe; the value is YAML. May be repeated

      -h, --help
              Print help (see a summary with '-h')

    Arguments of arctic_training and deepspeed:
          --mode <MODE>
              train, or process-data to fill the data cache and stop
              
              [default: train]
              [possible values: train, process-data]

          --master_port <PORT>
              Port of the rendezvous between the processes; by default a free one

          --master_addr <HOST>
              Address of the rendezvous between the processes; by default how ssh reaches the first host

      -q, --quiet
              Say nothing about starting processes

      -H, --hostfile <FILE>
              Hosts to run on, one a line: `node-1 slots=8`; each is reached by ssh

      -i, --include <HOSTS>
              Hosts and slots of the hostfile to use, as node-1@node-2:0,2; without one, localhost:0,2

      -e, --exclude <HOSTS>
              Hosts and slots of the hostfile to leave out

          --num_nodes <N>
              Hosts to use, the first of the hostfile; or how many start their own ranks with --no_ssh

          --no_ssh
              Start only the ranks of this host: the command runs on every host, with its --node_rank

          --node_rank <N>
              Number of this host, with --no_ssh; a Kubernetes indexed job knows it

          --ssh_port <PORT>
              Port of sshd on the hosts, where it is not what ~/.ssh/config says

          --force_multi
              Use ssh even if there is only this host

          --launcher <NAME>
              Only deepspeed, which is this launcher

          --python_profile <KIND>
              Only disable

          --no_ssh_check
              Accepted: every host is checked when it is reached, whatever this says

          --no_local_rank
              Accepted: ranks are told by LOCAL_RANK

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
                        Where models and data sets of the hub come from
    ----- stderr -----
    ");
}

#[test]
fn help_of_check() {
    assert_snapshot!(Workspace::new().show(&["check", "-h"]), @r"
    exit status: 0
    ----- stdout -----
    Show what a recipe means, or everything that is wrong with it

    Usage: sterna check [OPTIONS] <RECIPE>

    Arguments:
      <RECIPE>  The recipe, a YAML file

    Options:
          --world-size <N>        Ranks in all; by default the recipe's sequence_parallel_size
          --device <DEVICE>       What the ranks compute on, which this machine need not have [default:
                                  auto] [possible values: auto, cpu, cuda]
          --format <FORMAT>       How to print the plan [default: text] [possible values: text, json]
          --set <KEY.PATH=VALUE>  Set a key of the recipe; the value is YAML. May be repeated
      -h, --help                  Print help (see more with '--help')

    Examples:
      sterna check recipe.yaml
      sterna check recipe.yaml --world-size 8 --device cuda
      sterna check recipe.yaml --format json | jq .memory
    ----- stderr -----
    ");
}

#[test]
fn help_of_data() {
    assert_snapshot!(Workspace::new().show(&["data", "-h"]), @r"
    exit status: 0
    ----- stdout -----
    Show the training data as the model sees it, or write the batches of each rank

    Usage: sterna data [OPTIONS] <RECIPE> --show <N>
           sterna data [OPTIONS] <RECIPE> --html <FILE>
           sterna data [OPTIONS] <RECIPE> --steps <N> --out <DIR>

    Arguments:
      <RECIPE>  The recipe, a YAML file

    Options:
          --show <N>              Print the first N packs, or samples if they are not packed, in the
                                  order of training
          --html <FILE>           Write them to this file as one web page instead; 10 without --show
          --show-tokens <T>       Tokens to show of a document; of a longer one, its start and its end
                                  [default: 2000]
          --world-size <W>        Ranks in all; by default the recipe's sequence_parallel_size
          --steps <N>             Micro-batches to write for each rank
          --out <DIR>             Folder to write to; made if it does not exist
          --set <KEY.PATH=VALUE>  Set a key of the recipe; the value is YAML. May be repeated
      -h, --help                  Print help (see more with '--help')

    Examples:
      sterna data recipe.yaml --show 3
      sterna data recipe.yaml --html data.html
      sterna data recipe.yaml --world-size 2 --steps 4 --out batches
    ----- stderr -----
    ");
}

#[test]
fn a_wrong_argument_is_a_usage_error() {
    assert_snapshot!(Workspace::new().show(&["train", "recipe.yaml", "--num_gpu", "2"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: unexpected argument '--num_gpu' found

      tip: a similar argument exists: '--num_gpus'

    Usage: sterna train --num_gpus <N> <RECIPE>

    For more information, try '--help'.
    ");
}

#[test]
fn a_count_of_zero_is_refused() {
    assert_snapshot!(Workspace::new().show(&["train", "recipe.yaml", "--num_gpus", "0"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: invalid value '0' for '--num_gpus <N>': found `0`, required is a whole number from 1

    For more information, try '--help'.
    ");
}
