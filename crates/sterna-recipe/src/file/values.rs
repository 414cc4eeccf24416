//! The types of values, with the leniency of the reference: where pydantic takes a string for a number, so do we.

use std::marker::PhantomData;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use sterna_arch::DType;

use crate::{
    human,
    keys::{Affects, Key},
    recipe::{
        AttnImplementation, CheckpointKind, ControlTokens, DpoLoss, ExcessLength, KeepAttention,
        LabelMask, LogLevel, LossAverage, NonFinitePolicy, Packing, PadTo, Place, Ramp, Ranks,
        RowFormat, SourceType, StoppingStrategy, TrainOn, Trainer, UnmappedRoles,
    },
    yaml::{Content, Node, scalar::Meaning},
};

use super::{
    reader::{Read, Reader, nearest},
    sections::{ModelKind, OffloadDevice, SchedulerKind, SourceKind},
};

/// A string; a number or boolean has to be quoted.
#[derive(Clone, Debug)]
pub(crate) struct Text;

impl Read for Text {
    type Value = String;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<String> {
        match &node.content {
            Content::Scalar(Meaning::Text(text)) => Some(text.clone()),
            Content::Scalar(Meaning::Null) => reader.wrong(node, path, "a string"),
            Content::Scalar(_) => reader.wrong(node, path, "a string (put it in quotes)"),
            _ => reader.wrong(node, path, "a string"),
        }
    }
}

/// `true` or `false`, and the other ways that YAML 1.1 and pydantic have to say so.
#[derive(Clone, Debug)]
pub(crate) struct Flag;

impl Read for Flag {
    type Value = bool;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<bool> {
        let word = match &node.content {
            Content::Scalar(Meaning::Bool(x)) => return Some(*x),
            Content::Scalar(Meaning::Int(0)) => "0",
            Content::Scalar(Meaning::Int(1)) => "1",
            Content::Scalar(Meaning::Text(text)) => &text.to_lowercase(),
            _ => "",
        };
        match word {
            "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
            _ => reader.wrong(node, path, "`true` or `false`"),
        }
    }
}

/// An integer of at least `MIN`, without human forms: `3`, `1_000`.
#[derive(Clone, Debug)]
pub(crate) struct Int<const MIN: u64>;

impl<const MIN: u64> Read for Int<MIN> {
    type Value = usize;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<usize> {
        let value = match &node.content {
            Content::Scalar(Meaning::Int(x)) => Some(*x),
            Content::Scalar(Meaning::Float(x)) => integral(*x),
            Content::Scalar(Meaning::Text(text)) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        };
        match in_range::<MIN>(value) {
            Some(value) => Some(value),
            None if matches!(&node.content, Content::Scalar(Meaning::Text(text)) if human::parse(text).is_some()) => {
                reader.wrong(node, path, format!("an integer of at least {MIN}, written in digits"))
            }
            None => reader.wrong(node, path, range::<MIN>(value)),
        }
    }
}

/// An integer of at least `MIN`, with human forms: `32_000`, `3.8M`, `64Ki`, `1e6`.
#[derive(Clone, Debug)]
pub(crate) struct HumanInt<const MIN: u64>;

impl<const MIN: u64> Read for HumanInt<MIN> {
    type Value = usize;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<usize> {
        let required =
            |value| format!("{}, such as `32_000`, `1.5M` or `64Ki`", range::<MIN>(value));
        let value = match &node.content {
            Content::Scalar(Meaning::Int(x)) => Some(*x),
            Content::Scalar(Meaning::Float(x)) => integral(*x),
            Content::Scalar(Meaning::Text(text)) => match human::parse(text) {
                None if has_long_mantissa(text) => {
                    let required = format!(
                        "{}; before a suffix only one digit may follow the point",
                        required(None)
                    );
                    return reader.wrong(node, path, required);
                }
                number => number.and_then(integral),
            },
            _ => None,
        };
        in_range::<MIN>(value).or_else(|| reader.wrong(node, path, required(value)))
    }
}

/// Whether `text` would be a number with a suffix if it had fewer digits: `1.25M`.
fn has_long_mantissa(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[number.len()..];
    number.contains('.')
        && human::parse(number).is_some()
        && human::parse(&format!("1{suffix}")).is_some()
}

/// No run has this many of anything, and sums of such numbers do not overflow.
const MAX: i128 = (1 << 48) - 1;

fn integral(x: f64) -> Option<i128> {
    (x.is_finite() && x.fract() == 0.0).then_some(x as i128)
}

fn in_range<const MIN: u64>(value: Option<i128>) -> Option<usize> {
    let value = value.filter(|value| (i128::from(MIN)..=MAX).contains(value))?;
    usize::try_from(value).ok()
}

/// The range of integers in words; the end of it only for who went beyond.
fn range<const MIN: u64>(value: Option<i128>) -> String {
    match value {
        Some(value) if value > MAX => format!("an integer from {MIN} to {MAX}"),
        _ => format!("an integer of at least {MIN}"),
    }
}

fn number(node: &Node, parse: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    match &node.content {
        Content::Scalar(Meaning::Int(x)) => Some(*x as f64),
        Content::Scalar(Meaning::Float(x)) => Some(*x),
        Content::Scalar(Meaning::Text(text)) => parse(text),
        _ => None,
    }
    .filter(|x| x.is_finite())
}

/// A number of at least 0, with human forms: `1e-5`, `10%`.
#[derive(Clone, Debug)]
pub(crate) struct HumanFloat;

impl Read for HumanFloat {
    type Value = f64;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<f64> {
        let value = number(node, human::parse).filter(|x| *x >= 0.0);
        value
            .or_else(|| reader.wrong(node, path, "a number of at least 0, such as `1e-5` or `0.1`"))
    }
}

/// A number from 0 to 1, with human forms.
#[derive(Clone, Debug)]
pub(crate) struct Fraction;

impl Read for Fraction {
    type Value = f64;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<f64> {
        let value = number(node, human::parse).filter(|x| (0.0..=1.0).contains(x));
        value.or_else(|| reader.wrong(node, path, "a number from 0 to 1, such as `0.1` or `10%`"))
    }
}

/// A finite number, without human forms.
#[derive(Clone, Debug)]
pub(crate) struct Real;

impl Read for Real {
    type Value = f64;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<f64> {
        let value = number(node, |text| text.trim().replace('_', "").parse().ok());
        value.or_else(|| reader.wrong(node, path, "a number"))
    }
}

/// Two numbers, as a list.
#[derive(Clone, Debug)]
pub(crate) struct Pair;

impl Read for Pair {
    type Value = (f64, f64);

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<(f64, f64)> {
        match &node.content {
            Content::Sequence(items) if items.len() == 2 => {
                let first = Real::read(&items[0], &format!("{path}[0]"), reader);
                let second = Real::read(&items[1], &format!("{path}[1]"), reader);
                Some((first?, second?))
            }
            _ => reader.wrong(node, path, "a list of two numbers"),
        }
    }
}

/// A list.
#[derive(Clone, Debug)]
pub(crate) struct List<T>(PhantomData<T>);

impl<T: Read> Read for List<T> {
    type Value = Vec<T::Value>;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self::Value> {
        let Content::Sequence(items) = &node.content else {
            return reader.wrong(node, path, "a list");
        };
        Some(read_items::<T>(items, path, reader))
    }

    fn keys(path: &str, affects: Option<Affects>, out: &mut Vec<Key>) {
        out.push(Key { path: path.to_owned(), affects });
        let item = format!("{path}[]");
        let mut below = Vec::new();
        T::keys(&item, affects, &mut below);
        out.extend(below.into_iter().filter(|key| key.path != item));
    }
}

/// A list, or one item that stands for a list of one.
#[derive(Clone, Debug)]
pub(crate) struct OneOrMany<T>(PhantomData<T>);

impl<T: Read> Read for OneOrMany<T> {
    type Value = Vec<T::Value>;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self::Value> {
        match &node.content {
            Content::Sequence(items) => Some(read_items::<T>(items, path, reader)),
            _ => Some(T::read(node, path, reader).into_iter().collect()),
        }
    }

    fn keys(path: &str, affects: Option<Affects>, out: &mut Vec<Key>) {
        List::<T>::keys(path, affects, out);
    }
}

fn read_items<T: Read>(items: &[Node], path: &str, reader: &mut Reader) -> Vec<T::Value> {
    let read = |(idx, item): (usize, &Node)| {
        let path = format!("{path}[{idx}]");
        reader.places.insert(path.clone(), item.span);
        T::read(item, &path, reader)
    };
    items.iter().enumerate().filter_map(read).collect()
}

/// A value that may be `null`.
#[derive(Clone, Debug)]
pub(crate) struct Maybe<T>(PhantomData<T>);

impl<T: Read> Read for Maybe<T> {
    type Value = Option<T::Value>;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self::Value> {
        if node.is_null() { Some(None) } else { T::read(node, path, reader).map(Some) }
    }

    fn keys(path: &str, affects: Option<Affects>, out: &mut Vec<Key>) {
        T::keys(path, affects, out);
    }
}

/// A mapping whose keys are somebody else's.
#[derive(Clone, Debug)]
pub(crate) struct Tree;

impl Read for Tree {
    type Value = Map<String, Value>;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self::Value> {
        match node.to_json() {
            Value::Object(map) => Some(map),
            _ => reader.wrong(node, path, "a mapping"),
        }
    }
}

/// A mapping of strings, in its order.
#[derive(Clone, Debug)]
pub(crate) struct Words;

impl Read for Words {
    type Value = Vec<(String, String)>;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self::Value> {
        let Content::Mapping(entries) = &node.content else {
            return reader.wrong(node, path, "a mapping of strings");
        };
        let words = entries.iter().map(|entry| {
            let path = format!("{path}.{}", entry.key);
            reader.places.insert(path.clone(), entry.value.span);
            Some((entry.key.clone(), Text::read(&entry.value, &path, reader)?))
        });
        words.collect::<Vec<_>>().into_iter().collect()
    }
}

/// Anything, kept as it stands for a reader that knows more.
#[derive(Clone, Debug)]
pub(crate) struct Raw;

impl Read for Raw {
    type Value = Node;

    fn read(node: &Node, _path: &str, _reader: &mut Reader) -> Option<Node> {
        Some(node.clone())
    }
}

impl Read for Ranks {
    type Value = Self;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        match &node.content {
            Content::Scalar(Meaning::Text(text)) if text == "*" => Some(Self::All),
            Content::Sequence(items) => Some(Self::List(read_items::<Int<0>>(items, path, reader))),
            _ => reader.wrong(node, path, "a list of ranks, or `\"*\"` for all"),
        }
    }
}

impl Read for KeepAttention {
    type Value = Self;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        match &node.content {
            Content::Scalar(Meaning::Text(text)) if text == "auto" => Some(Self::Auto),
            Content::Scalar(Meaning::Bool(true)) => Some(Self::All),
            Content::Scalar(Meaning::Bool(false)) => Some(Self::Blocks(0)),
            Content::Scalar(Meaning::Int(x)) if *x >= 0 => {
                usize::try_from(*x).ok().map(Self::Blocks)
            }
            _ => reader.wrong(node, path, "`auto`, `true`, `false` or a number of blocks"),
        }
    }
}

/// Declares the words that an enum can be typed as; messages show the first of each.
macro_rules! words {
    ($($type:ty { $($word:literal $(| $other:literal)* => $value:expr,)* })*) => {$(
        impl Read for $type {
            type Value = Self;

            fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
                const WORDS: &[&str] = &[$($word),*];
                let text = match &node.content {
                    Content::Scalar(meaning) => meaning.plain_text().unwrap_or_default(),
                    _ => String::new(),
                };
                match text.as_str() {
                    $($word $(| $other)* => return Some($value),)*
                    _ => {}
                }
                let shown: Vec<_> = WORDS.iter().map(|word| format!("`{word}`")).collect();
                let required = format!("one of {}", shown.join(", "));
                reader.wrong::<()>(node, path, required);
                if let (Some(error), Some(word)) = (reader.errors.last_mut(), nearest(&text, WORDS.iter().copied())) {
                    error.hint = Some(format!("did you mean `{word}`?"));
                }
                None
            }
        }
    )*};
}

/// Declares the words of an enum of the resolved recipe, in which the first word of each is shown.
macro_rules! names {
    ($($type:ident { $($word:literal $(| $other:literal)* => $variant:ident,)* })*) => {
        words! { $($type { $($word $(| $other)* => Self::$variant,)* })* }

        $(
            impl $type {
                /// The word in a recipe.
                pub fn name(self) -> &'static str {
                    match self {
                        $(Self::$variant => $word,)*
                    }
                }
            }

            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(self.name())
                }
            }
        )*
    };
}

/// A number format; the ones that cannot be trained in are refused with their reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DtypeWord {
    Supported(DType),
    Half,
}

words! {
    ModelKind { "huggingface" => Self::HuggingFace, "liger" => Self::Liger, }
    DtypeWord {
        "bf16" | "bfloat16" | "bfloat" | "torch.bfloat16" => Self::Supported(DType::BF16),
        "fp32" | "float32" | "float" | "torch.float32" => Self::Supported(DType::F32),
        "fp16" | "float16" | "half" | "torch.float16" => Self::Half,
    }
    SourceKind {
        "huggingface_instruct" => Self::HuggingFaceInstruct,
        "huggingface" => Self::HuggingFace,
        "huggingface_causal" => Self::HuggingFaceCausal,
        "snowflake" => Self::Snowflake,
        "ProjectGutenbergSFT" => Self::ProjectGutenberg,
        "HuggingFaceH4/ultrafeedback_binarized" => Self::Ultrafeedback,
    }
    CacheFsWord { "auto" | "local" | "shared" => Self, }
    OptimizerWord {
        "fused_adam" => Self::Dense,
        "cpu_adam" => Self::Dense,
        "fused_adam_moe" | "cpu_adam_moe" => Self::Moe,
    }
    SchedulerKind { "huggingface" => Self::HuggingFace, "wds" | "wsd" => Self::Wsd, }
    OffloadDevice { "none" => Self::None, "cpu" => Self::Cpu, "nvme" => Self::Nvme, }
}

names! {
    AttnImplementation {
        "sdpa" => Sdpa,
        "eager" => Eager,
        "flex_attention" => FlexAttention,
        "flash_attention_2" => FlashAttention2,
        "flash_attention_3" => FlashAttention3,
    }
    Trainer { "sft" => Sft, "causal" => Causal, "dpo" => Dpo, }
    DpoLoss {
        "sigmoid" => Sigmoid,
        "sigmoid_norm" => SigmoidNorm,
        "hinge" => Hinge,
        "ipo" => Ipo,
        "robust" => Robust,
        "exo_pair" => ExoPair,
        "nca_pair" => NcaPair,
        "sppo_hard" => SppoHard,
        "apo_zero" => ApoZero,
        "apo_down" => ApoDown,
        "simpo" => Simpo,
        "orpo" => Orpo,
        "sft" => Sft,
        "kto" => Kto,
        "apo_zero_unpaired" => ApoZeroUnpaired,
    }
    SourceType {
        "huggingface_instruct" => HuggingFaceInstruct,
        "huggingface_causal" => HuggingFaceCausal,
        "huggingface" => HuggingFace,
    }
    PadTo { "div_length" => DivLength, "max_length" => MaxLength, }
    LabelMask { "exact" => Exact, "reference" => Reference, }
    RowFormat {
        "messages" | "sharegpt" => Messages,
        "alpaca" => Alpaca,
        "prompt_completion" => PromptCompletion,
        "text" => Text,
        "tokens" => Tokens,
        "preference" => Preference,
        "unpaired_preference" => UnpairedPreference,
    }
    UnmappedRoles { "refuse" => Refuse, "drop" => Drop, }
    TrainOn { "all" => All, "last" => Last, "marked" => Marked, }
    ExcessLength {
        "drop" => Drop,
        "truncate" => Truncate,
        "split" => Split,
        "raise" => Raise,
    }
    StoppingStrategy {
        "first_exhausted" => FirstExhausted,
        "all_exhausted" => AllExhausted,
    }
    ControlTokens { "warn" => Warn, "plain_text" => PlainText, }
    Packing { "reference" => Reference, "global" => Global, }
    Place { "device" => Device, "host" => Host, "disk" => Disk, }
    NonFinitePolicy { "stop" => Stop, "skip" => Skip, "warn" => Warn, }
    LossAverage { "micro_batch" => MicroBatch, "token" => Token, }
    Ramp { "linear" => Linear, "cosine" => Cosine, "1-sqrt" => OneMinusSqrt, }
    LogLevel {
        "DEBUG" => Debug,
        "INFO" => Info,
        "WARNING" | "WARN" => Warning,
        "ERROR" => Error,
        "CRITICAL" | "FATAL" => Critical,
    }
    CheckpointKind { "sterna" | "deepspeed" => Sterna, "huggingface" => HuggingFace, }
}

/// Which ranks of a cluster see one cache folder; it only has to be a word that the reference knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheFsWord;

/// An optimizer; those for mixtures of experts are refused with their reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OptimizerWord {
    Dense,
    Moe,
}
