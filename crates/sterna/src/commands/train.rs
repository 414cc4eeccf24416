//! `sterna train`: the launcher of the ranks, or one of them.

use std::time::Duration;

use nix::sys::signal::Signal;
use sterna_comm::RankEnv;
use sterna_plan::Plan;
use sterna_recipe::{CheckpointKind, Recipe};
use sterna_train::{EarlyExit, Stop, TimelineLayer, TrainError, TrainOptions, TrainSummary};

use super::{data, load, model_config, wrong_recipe};
use crate::cli::{DeviceChoice, Mode, Train};
use crate::env_vars;
use crate::launch::{self, Launch, child};
use crate::logging;
use crate::render::Narrator;
use crate::report::{Exit, Failure};
use crate::signals::{self, Care};

/// Trains, as launcher or as rank.
pub(crate) fn run(args: &Train) -> Result<(), Failure> {
    child::follow_launcher()?;
    refuse_what_is_not_done(args)?;
    let Some(env) = rank_env(args)? else {
        return run_launcher(args);
    };
    refuse_what_a_rank_is_not_told(args, &env)?;
    let recipe = load(&args.recipe, &args.overrides).map_err(|errors| wrong_recipe(&errors))?;
    if args.arctic.mode == Mode::ProcessData {
        return process_data(&recipe, &env);
    }
    let outcome = run_rank(args, &recipe, &env);
    if env.world_size > 1 { outcome.map_err(|failure| failure.of_rank(env.rank)) } else { outcome }
}

fn run_launcher(args: &Train) -> Result<(), Failure> {
    let (recipe, launch) = plan(args)?;
    if args.arctic.mode == Mode::ProcessData {
        let env = RankEnv { world_size: launch.job.world_size(), ..RankEnv::single() };
        return process_data(&recipe, &env);
    }
    if launch.is_single_process() {
        return run_rank(args, &recipe, &RankEnv::single());
    }
    launch::run(&launch)
}

/// Refuses arguments that are understood and not followed, before anything is read.
pub(crate) fn refuse_what_is_not_done(args: &Train) -> Result<(), Failure> {
    if let Some(refusal) = args.arctic.refusal() {
        let message = format!("`{}` {}", refusal.argument, refusal.reason);
        return Err(Failure::new(Exit::Usage, message).with_hint(refusal.instead.to_owned()));
    }
    Ok(())
}

/// Refuses what is about starting ranks where this process is one, so that nothing is ignored.
fn refuse_what_a_rank_is_not_told(args: &Train, env: &RankEnv) -> Result<(), Failure> {
    let RankEnv { rank, local_rank, world_size, .. } = *env;
    let is_rank = format!("this process is rank `{rank}` of `{world_size}`, as its launcher says");
    let of_launchers = args.arctic.argument_of_launchers();
    if let Some(argument) = of_launchers.or((args.max_restarts > 0).then_some("--max-restarts")) {
        let message = format!("`{argument}` is for starting ranks, but {is_rank}");
        let hint =
            format!("leave `{argument}` out, or start this command outside of the other launcher");
        return Err(Failure::new(Exit::Usage, message).with_hint(hint));
    }
    match args.arctic.local_rank {
        Some(found) if usize::try_from(found) != Ok(local_rank) => {
            let message = format!("`--local_rank` is `{found}`, but LOCAL_RANK is `{local_rank}`");
            let hint = "leave `--local_rank` out: variables say who a rank is".to_owned();
            Err(Failure::new(Exit::Usage, message).with_hint(hint))
        }
        _ => Ok(()),
    }
}

/// The recipe and what is started for it. Whatever can be refused is refused here, before a process is started, and once.
pub(crate) fn plan(args: &Train) -> Result<(Recipe, Launch), Failure> {
    let recipe = load(&args.recipe, &args.overrides).map_err(|errors| wrong_recipe(&errors))?;
    let launch = launch::resolve::resolve(args, &recipe)?;
    if args.arctic.mode == Mode::Train {
        Plan::new(
            &recipe,
            &model_config(&recipe)?,
            launch.job.world_size(),
            launch::resolve::device_type(args.device),
        )
        .map_err(|errors| wrong_recipe(&errors))?;
    }
    Ok((recipe, launch))
}

/// Who we are, if someone has started us as one of several ranks.
fn rank_env(args: &Train) -> Result<Option<RankEnv>, Failure> {
    let env = RankEnv::discover()
        .map_err(|err| Failure::from_error(Exit::Usage, &err).with_hint(err.hint()))?;
    let Some(env) = env else { return Ok(None) };
    match args.num_gpus() {
        Some(num_gpus) if num_gpus != env.local_world_size => {
            let message = format!(
                "`--num_gpus` is `{num_gpus}`, but this is one of `{}` processes that a launcher has started on this host",
                env.local_world_size
            );
            let hint = "leave `--num_gpus` out under torchrun, srun and mpirun, which say themselves how many processes \
                        they start"
                .to_owned();
            Err(Failure::new(Exit::Usage, message).with_hint(hint))
        }
        _ => Ok(Some(env)),
    }
}

fn run_rank(args: &Train, recipe: &Recipe, env: &RankEnv) -> Result<(), Failure> {
    let device = match args.device {
        DeviceChoice::Auto => sterna_train::DeviceChoice::Auto,
        DeviceChoice::Cpu => sterna_train::DeviceChoice::Cpu,
        DeviceChoice::Cuda => sterna_train::DeviceChoice::Cuda,
    };
    let stop = Stop::default();
    let care = Care {
        saves: recipe.checkpoint.iter().any(|entry| entry.kind == CheckpointKind::Sterna),
        has_launcher: child::has_launcher(),
        stop_within: Duration::from_secs(args.stop_within),
    };
    signals::catch(stop.clone(), care)
        .map_err(|err| Failure::new(Exit::Failed, format!("cannot wait for signals: {err}")))?;
    let mut narrator = Narrator::new(recipe, env);
    logging::init(&recipe.logger, env.local_rank, narrator.screen(), timeline(recipe, env)?)?;
    let collective_timeout = collective_timeout()?;
    let options = TrainOptions { device, collective_timeout, stop };
    // A failed tensor operation arrives as a panic, which becomes the error of the run: that is what is shown, once.
    std::panic::set_hook(Box::new(|panic| tracing::debug!(target: logging::RUN, "{panic}")));
    let outcome = sterna_train::train(recipe, env, &options, &mut narrator);
    drop(std::panic::take_hook());
    let has_started = narrator.has_started();
    match outcome {
        Ok(summary) => {
            narrator.finish(&summary);
            stopped(&summary, recipe).map_or(Ok(()), Err)
        }
        Err(err) => {
            narrator.screen().finish();
            let failure = train_failure(&err, has_started);
            tracing::error!(target: logging::RUN, "{}", failure.render().trim_end());
            Err(failure)
        }
    }
}

/// How a run that a signal stopped ends.
fn stopped(summary: &TrainSummary, recipe: &Recipe) -> Option<Failure> {
    let Some(EarlyExit::Signal(signal)) = summary.early_exit else { return None };
    let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
    let step = summary.num_steps;
    let message = match &summary.checkpoint {
        Some(dir) => {
            format!("stopped by {name} after step {step}; the checkpoint is in `{}`", dir.display())
        }
        None => format!("stopped by {name} after step {step}; there is no checkpoint yet"),
    };
    let resumes = recipe.checkpoint.iter().any(|entry| entry.auto_resume);
    let hint = if resumes {
        "the same command goes on from there"
    } else {
        "`auto_resume: true` in the checkpoint's entry makes the same command go on from there"
    };
    let exit = Exit::Interrupted(u8::try_from(signal).unwrap_or_default());
    Some(Failure::new(exit, message).with_hint(hint.to_owned()))
}

/// The timeline of this rank, if the recipe asks for one.
fn timeline(recipe: &Recipe, env: &RankEnv) -> Result<Option<TimelineLayer>, Failure> {
    let Some(dir) = &recipe.memory.timeline_dir else { return Ok(None) };
    TimelineLayer::create(dir, env.rank, recipe.memory.timeline_steps)
        .map(Some)
        .map_err(|err| train_failure(&err, false))
}

/// How long a collective waits for its slowest rank: what [`env_vars::COLLECTIVE_TIMEOUT`] says.
fn collective_timeout() -> Result<Duration, Failure> {
    let name = env_vars::COLLECTIVE_TIMEOUT;
    let Some(typed) = std::env::var_os(name) else {
        return Ok(TrainOptions::default().collective_timeout);
    };
    let minutes = typed.to_str().and_then(|text| text.trim().parse::<u64>().ok());
    match minutes {
        Some(minutes) if minutes > 0 => Ok(Duration::from_mins(minutes)),
        _ => {
            let message =
                format!("`{name}` is `{}`, required: whole minutes, at least 1", typed.display());
            Err(Failure::new(Exit::Usage, message)
                .with_hint(format!("unset {name} for 30 minutes")))
        }
    }
}

/// `--mode process-data`: fills the cache, so that a later run starts at once.
fn process_data(recipe: &Recipe, env: &RankEnv) -> Result<(), Failure> {
    let narrator = Narrator::new(recipe, env);
    logging::init(&recipe.logger, env.local_rank, narrator.screen(), None)?;
    let report = data::prepare(recipe, env.world_size, narrator.screen())?.datasets.report;
    narrator.data(&report);
    Ok(())
}

/// A mistake in the recipe or its files until training has started, a failed training after that.
fn train_failure(err: &TrainError, has_started: bool) -> Failure {
    let exit = match err {
        TrainError::Plan(errors) => return wrong_recipe(errors),
        TrainError::NoSteps { .. } | TrainError::DeviceUnavailable { .. } => Exit::Usage,
        TrainError::Data(_) | TrainError::Hf(_) | TrainError::Config(_) if !has_started => {
            Exit::Usage
        }
        _ => Exit::Failed,
    };
    let mut failure = Failure::from_error(exit, err).with_hint(err.hint());
    failure.is_about_peer = err.is_about_peer();
    // The run repeats bit for bit, and what lies in folders does not change by itself.
    failure.recurs = matches!(
        err,
        TrainError::NotFinite { .. }
            | TrainError::NoGoodCheckpoint { .. }
            | TrainError::UsedFolder { .. }
            | TrainError::FolderNotShared { .. }
            | TrainError::RanksDisagree { .. }
    );
    failure
}
