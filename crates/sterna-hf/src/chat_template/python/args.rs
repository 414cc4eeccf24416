//! Arguments as Python binds them: by position or by name.

use minijinja::value::{Kwargs, Rest, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Value};

/// The arguments of `what` in the order of `names`; `None` for those that are not given.
pub(super) fn bind<const N: usize>(
    what: &str,
    names: [&str; N],
    args: &[Value],
) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = split(args)?;
    if positional.len() > N {
        let message = format!("`{what}` takes `{N}` arguments, not `{}`", positional.len());
        return Err(Error::new(ErrorKind::TooManyArguments, message));
    }
    let mut bound = [const { None }; N];
    for (place, value) in bound.iter_mut().zip(positional) {
        *place = Some(value.clone());
    }
    if let Some(named) = named {
        for (place, name) in bound.iter_mut().zip(names) {
            if !named.has(name) {
                continue;
            }
            if place.is_some() {
                let message = format!("`{what}` got `{name}` twice");
                return Err(Error::new(ErrorKind::TooManyArguments, message));
            }
            *place = Some(named.get(name)?);
        }
        named.assert_all_used()?;
    }
    Ok(bound)
}

/// Positional arguments and named ones.
pub(super) fn split(args: &[Value]) -> Result<(&[Value], Option<Kwargs>), Error> {
    Ok(match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
        _ => (args, None),
    })
}

/// An argument that has to be given.
pub(super) fn required(what: &str, name: &str, value: Option<Value>) -> Result<Value, Error> {
    value.ok_or_else(|| {
        Error::new(ErrorKind::MissingArgument, format!("`{what}` needs its `{name}`"))
    })
}

/// Arguments by position and by name in one list, as methods get them.
pub(super) fn plain(args: &Rest<ValueOrKwargs>) -> Vec<Value> {
    args.iter().map(|arg| Value::clone(arg)).collect()
}
