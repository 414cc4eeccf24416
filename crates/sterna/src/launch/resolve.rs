//! From what was typed to what is started.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sterna_comm::env_vars as comm_vars;
use sterna_launch::wire::Prepare;
use sterna_launch::{
    ENV_FILE_NAME, Host, Job, LaunchError, Selection, SshOptions, chosen_here, exported,
    parse_env_file, parse_hostfile,
};
use sterna_plan::DeviceType;
use sterna_recipe::Recipe;
use sterna_train::observe::gpus;

use super::{Launch, Place};
use crate::cli::{Arctic, DeviceChoice, Train};
use crate::env_vars;
use crate::report::{Exit, Failure};

/// The reference's port, where nobody can pick a free one for all hosts.
const DEFAULT_PORT: u16 = 29500;

/// What `args` start. Reads the hostfile and the environment, and with several hosts the files of variables.
///
/// # Errors
///
/// Arguments that contradict each other, the hostfile or the environment; files that cannot be read or are none.
pub(crate) fn resolve(args: &Train, recipe: &Recipe) -> Result<Launch, Failure> {
    let arctic = &args.arctic;
    if let Some(found) = arctic.local_rank.filter(|rank| *rank != -1) {
        return Err(refuse(
            format!("`--local_rank` is `{found}`, but nothing says that this process is a rank"),
            "leave it out; a launcher sets RANK, LOCAL_RANK and WORLD_SIZE for the ranks that it starts",
        ));
    }
    let hosts = hosts(args, recipe)?;
    let node_rank = node_rank(arctic)?;
    let job = job(args, recipe, hosts.as_deref())?;
    let is_one_of_several = job.nodes().len() > 1;
    let is_here = match (&hosts, node_rank) {
        (Some(_), None) if is_one_of_several || arctic.force_multi => false,
        (Some(_), None) => job.nodes().iter().all(|node| is_this_host(&node.host)),
        (None, None) if is_one_of_several => {
            return Err(refuse(
                format!(
                    "`--num_nodes` is `{}`, but nothing says which hosts these are",
                    job.nodes().len()
                ),
                "name them in a hostfile (`-H FILE`), or start this command on each with `--no_ssh --node_rank N \
                 --master_addr HOST`",
            ));
        }
        (_, Some(_)) | (None, None) => true,
    };
    let (mut master_addr, mut master_port) = (arctic.master_addr.clone(), arctic.master_port);
    let place = if is_here {
        let node_rank = node_rank.unwrap_or(0);
        job.node(node_rank).map_err(|err| wrong(&err))?;
        if is_one_of_several {
            let named = hosts.as_ref().map(|_| without_user(&job.nodes()[0].host).to_owned());
            master_addr = Some(master_addr.or_else(|| variable(comm_vars::MASTER_ADDR)).or(named).ok_or_else(|| {
                refuse(
                    "`--master_addr` is missing: ranks of several hosts must know where to meet".to_owned(),
                    "say which address or name the first host (`--node_rank 0`) has, with `--master_addr` or MASTER_ADDR",
                )
            })?);
            master_port = Some(match master_port {
                Some(port) => port,
                None => port_variable()?.unwrap_or(DEFAULT_PORT),
            });
        }
        Place::Here { node_rank }
    } else {
        Place::Hosts {
            ssh: SshOptions { port: arctic.ssh_port },
            prepare: prepare(&args.recipe)?,
            env: environment()?,
        }
    };
    if args.max_restarts > 0 {
        may_restart(recipe, &place, is_one_of_several)?;
    }
    Ok(Launch {
        job,
        place,
        master_addr,
        master_port,
        max_restarts: args.max_restarts,
        stop_within: Duration::from_secs(args.stop_within),
        quiet: arctic.quiet,
        rank_args: rank_args(args)?,
    })
}

/// The hosts of the hostfile, if there is one.
fn hosts(args: &Train, recipe: &Recipe) -> Result<Option<Vec<Host>>, Failure> {
    let Some(path) = &args.arctic.hostfile else {
        let slots = slots_here(args, recipe);
        let here = || vec![Host { name: "localhost".to_owned(), slots }];
        return Ok(args.arctic.force_multi.then(here));
    };
    let text = fs::read_to_string(path).map_err(|err| {
        refuse(
            format!("cannot read the hostfile `{}`: {err}", path.display()),
            "leave `--hostfile` out to run on this host",
        )
    })?;
    parse_hostfile(&text, &path.display().to_string()).map(Some).map_err(|err| wrong(&err))
}

/// The number of this host, where each starts its own ranks.
fn node_rank(arctic: &Arctic) -> Result<Option<usize>, Failure> {
    let num_nodes = arctic.num_nodes();
    let typed = arctic.node_rank.filter(|rank| *rank != -1);
    if let Some(typed) = typed {
        let is_lonely = arctic.hostfile.is_none() && num_nodes.is_none_or(|nodes| nodes == 1);
        let is_allowed = arctic.no_ssh || (typed == 0 && is_lonely);
        if !is_allowed {
            return Err(refuse(
                "`--node_rank` is for `--no_ssh`: without that, this command starts the ranks of all hosts".to_owned(),
                "add `--no_ssh` and start the command on every host, or leave `--node_rank` out",
            ));
        }
        let rank = usize::try_from(typed).map_err(|_| {
            refuse(
                format!("`--node_rank` is `{typed}`, required: a number from 0"),
                "count hosts from 0",
            )
        })?;
        return Ok(Some(rank));
    }
    if let Some(found) = variable(env_vars::JOB_COMPLETION_INDEX).filter(|_| num_nodes.is_some()) {
        let name = env_vars::JOB_COMPLETION_INDEX;
        return found.parse().map(Some).map_err(|_| {
            refuse(
                format!("`{name}` is `{found}`, required: the number of this pod"),
                "say `--node_rank` instead",
            )
        });
    }
    let has_several = arctic.hostfile.is_some() || num_nodes.is_some_and(|nodes| nodes > 1);
    if arctic.no_ssh && has_several {
        return Err(refuse(
            "`--no_ssh` needs `--node_rank`: which of the hosts is this".to_owned(),
            "start the command on every host, with `--node_rank 0` on the first, `--node_rank 1` on the next",
        ));
    }
    Ok(None)
}

/// Who runs which ranks.
fn job(args: &Train, recipe: &Recipe, hosts: Option<&[Host]>) -> Result<Job, Failure> {
    let arctic = &args.arctic;
    let (num_nodes, num_gpus) = (arctic.num_nodes(), args.num_gpus());
    let selection = match (&arctic.include, &arctic.exclude) {
        (Some(_), Some(_)) => {
            return Err(refuse(
                "`--include` and `--exclude` contradict each other".to_owned(),
                "leave one out",
            ));
        }
        (Some(include), None) => Some(Selection::Include(include)),
        (None, Some(exclude)) => Some(Selection::Exclude(exclude)),
        (None, None) => None,
    };
    if selection.is_some() && (num_nodes.is_some() || num_gpus.is_some()) {
        return Err(refuse(
            "`--include` and `--exclude` choose slots themselves, and take neither `--num_nodes` nor `--num_gpus`".to_owned(),
            "leave `--num_nodes` and `--num_gpus` out",
        ));
    }
    match (hosts, selection) {
        (Some(hosts), Some(selection)) => Job::of_selection(hosts, selection),
        (Some(hosts), None) => Job::of_hosts(hosts, num_nodes, num_gpus),
        (None, Some(Selection::Exclude(_))) => {
            return Err(refuse(
                "`--exclude` needs a hostfile, which says how many slots there are".to_owned(),
                "choose devices of this host with `--include localhost:0,1`",
            ));
        }
        (None, Some(Selection::Include(include))) => {
            chosen_here(include).and_then(|slots| match slots {
                None => Ok(Job::of_equal_nodes(1, slots_here(args, recipe))),
                Some(slots) => {
                    let num_slots = slots.last().map_or(0, |last| last + 1);
                    let here = [Host { name: "localhost".to_owned(), slots: num_slots }];
                    Job::of_selection(&here, Selection::Include(include))
                }
            })
        }
        (None, None) => {
            let num_nodes = num_nodes.unwrap_or(1);
            if num_nodes > 1 && num_gpus.is_none() {
                return Err(refuse(
                    "`--num_nodes` without a hostfile needs `--num_gpus`".to_owned(),
                    "say how many ranks run on each host",
                ));
            }
            Ok(Job::of_equal_nodes(num_nodes, slots_here(args, recipe)))
        }
    }
    .map_err(|err| wrong(&err))
}

/// How many ranks run on this host where no hostfile says it: as many as were asked for, else one on each GPU, else those that
/// share a sequence.
fn slots_here(args: &Train, recipe: &Recipe) -> usize {
    args.num_gpus().or_else(|| gpus_for_ranks(args.device)).unwrap_or(recipe.sequence_parallel_size)
}

/// What a rank computes on if it runs on a machine like this one.
pub(crate) fn device_type(device: DeviceChoice) -> DeviceType {
    match device {
        DeviceChoice::Cuda => DeviceType::Cuda,
        _ if gpus_for_ranks(device).is_some() => DeviceType::Cuda,
        _ => DeviceType::Cpu,
    }
}

/// The GPUs that the ranks of this host are to compute on, one each; `None` if there are none. Without NCCL they could not talk.
fn gpus_for_ranks(device: DeviceChoice) -> Option<usize> {
    if !cfg!(feature = "cuda") || device == DeviceChoice::Cpu {
        return None;
    }
    // Not `variable`: that it is set to nothing says that there is no GPU.
    let visible_devices = std::env::var(env_vars::CUDA_VISIBLE_DEVICES).ok();
    gpus::num_visible(visible_devices.as_deref()).filter(|count| *count > 0)
}

/// Whether ssh would only lead back here.
fn is_this_host(name: &str) -> bool {
    let own = nix::unistd::gethostname().unwrap_or_default();
    matches!(name, "localhost" | "127.0.0.1" | "::1") || own == name
}

fn without_user(host: &str) -> &str {
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

/// What the agents make sure of.
fn prepare(recipe: &Path) -> Result<Prepare, Failure> {
    let cannot = |what: &str, err: std::io::Error| {
        refuse(format!("cannot {what}: {err}"), "start from a folder that is there")
    };
    let dir = std::env::current_dir().map_err(|err| cannot("find the working directory", err))?;
    let bytes =
        fs::read(recipe).map_err(|err| cannot(&format!("read `{}`", recipe.display()), err))?;
    Ok(Prepare {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        dir: text(&dir)?,
        recipe: text(recipe)?,
        fingerprint: sterna_launch::fingerprint(&bytes),
    })
}

/// The variables for the ranks of all hosts: ours with the usual prefixes, then those of the files of variables.
fn environment() -> Result<BTreeMap<String, String>, Failure> {
    let own = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let name = variable(env_vars::ENV_FILE).unwrap_or_else(|| ENV_FILE_NAME.to_owned());
    let home = variable(env_vars::HOME).map(|home| Path::new(&home).join(&name));
    let mut variables = Vec::new();
    for path in home.into_iter().chain([PathBuf::from(&name)]) {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == ErrorKind::NotFound => continue,
            Err(err) => {
                return Err(refuse(
                    format!("cannot read `{}`: {err}", path.display()),
                    "it has variables for the ranks of all hosts; make it readable, or remove it",
                ));
            }
        };
        let path = path.display().to_string();
        variables.extend(parse_env_file(&text, &path).map_err(|err| wrong(&err))?);
    }
    Ok(exported(own, variables))
}

/// Whether ranks that failed could go on where they were.
fn may_restart(recipe: &Recipe, place: &Place, is_one_of_several: bool) -> Result<(), Failure> {
    if matches!(place, Place::Here { .. }) && is_one_of_several {
        return Err(refuse(
            "`--max-restarts` needs one launcher for all ranks, and with `--no_ssh` every host has its own".to_owned(),
            "leave it out and have whoever started the hosts start them again, such as Slurm with `--requeue`",
        ));
    }
    if recipe.checkpoint.iter().any(|entry| entry.auto_resume) {
        return Ok(());
    }
    Err(refuse(
        "`--max-restarts` needs a checkpoint to go on from, and the recipe has none with `auto_resume`".to_owned(),
        "add to `checkpoint` of the recipe: {type: sterna, output_dir: checkpoints, save_every_n_steps: 100, auto_resume: true}",
    ))
}

/// The command line of a rank: what is about training, and nothing about starting ranks.
fn rank_args(args: &Train) -> Result<Vec<String>, Failure> {
    let device = match args.device {
        DeviceChoice::Auto => "auto",
        DeviceChoice::Cpu => "cpu",
        DeviceChoice::Cuda => "cuda",
    };
    let mut words =
        vec!["train".to_owned(), text(&args.recipe)?, "--device".to_owned(), device.to_owned()];
    for change in &args.overrides.set {
        words.extend(["--set".to_owned(), change.as_str().to_owned()]);
    }
    Ok(words)
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| refuse(format!("the path `{}` is not UTF-8", path.display()), "rename it"))
}

fn port_variable() -> Result<Option<u16>, Failure> {
    let name = comm_vars::MASTER_PORT;
    let Some(found) = variable(name) else { return Ok(None) };
    found.parse().map(Some).map_err(|_| {
        refuse(
            format!("`{name}` is `{found}`, required: a TCP port"),
            "say `--master_port` instead",
        )
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn refuse(message: String, hint: &str) -> Failure {
    Failure::new(Exit::Usage, message).with_hint(hint.to_owned())
}

fn wrong(err: &LaunchError) -> Failure {
    Failure::from_error(Exit::Usage, err).with_hint(err.hint())
}
