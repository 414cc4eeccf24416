//! The environment variables of `huggingface_hub`, with its precedence and defaults.

use std::env;
use std::path::PathBuf;

use super::Hub;

/// Where the hub is; default `https://huggingface.co`.
const HF_ENDPOINT: &str = "HF_ENDPOINT";
/// The folder of everything Hugging Face; default `$XDG_CACHE_HOME/huggingface`.
const HF_HOME: &str = "HF_HOME";
/// The folder of the cache; default `$HF_HOME/hub`.
const HF_HUB_CACHE: &str = "HF_HUB_CACHE";
/// The token to send.
const HF_TOKEN: &str = "HF_TOKEN";
/// A file with the token; default `$HF_HOME/token`, where `hf auth login` puts it.
const HF_TOKEN_PATH: &str = "HF_TOKEN_PATH";
/// `1`, `true`, `yes` or `on`: use the cache only.
const HF_HUB_OFFLINE: &str = "HF_HUB_OFFLINE";
/// The same, by the name that transformers had for it.
const TRANSFORMERS_OFFLINE: &str = "TRANSFORMERS_OFFLINE";
/// The folder of caches; default `~/.cache`.
const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";

pub(super) fn hub() -> Hub {
    hub_of(&|name| env::var(name).ok().filter(|value| !value.is_empty()), env::home_dir())
}

fn hub_of(var: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Hub {
    let path = |name: &str| var(name).map(PathBuf::from);
    let home_of_hf = path(HF_HOME).unwrap_or_else(|| {
        let caches = path(XDG_CACHE_HOME);
        caches.unwrap_or_else(|| home.unwrap_or_default().join(".cache")).join("huggingface")
    });
    let is_set = |name: &str| {
        var(name).is_some_and(|value| {
            ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())
        })
    };
    let token = var(HF_TOKEN).or_else(|| {
        std::fs::read_to_string(path(HF_TOKEN_PATH).unwrap_or_else(|| home_of_hf.join("token")))
            .ok()
    });
    let endpoint = var(HF_ENDPOINT).unwrap_or_else(|| "https://huggingface.co".to_owned());
    Hub {
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        cache_dir: path(HF_HUB_CACHE).unwrap_or_else(|| home_of_hf.join("hub")),
        token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
        is_offline: is_set(HF_HUB_OFFLINE) || is_set(TRANSFORMERS_OFFLINE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub_with(vars: &[(&str, &str)]) -> Hub {
        let var = |name: &str| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        hub_of(&var, Some(PathBuf::from("/home/u")))
    }

    #[test]
    fn defaults_are_those_of_huggingface_hub() {
        let hub = hub_with(&[]);
        assert_eq!(hub.endpoint, "https://huggingface.co");
        assert_eq!(hub.cache_dir, PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert!(hub.token.is_none() && !hub.is_offline);
    }

    #[test]
    fn the_narrower_variable_wins() {
        let hub = hub_with(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]);
        assert_eq!(hub.cache_dir, PathBuf::from("/h/hub"));
        let hub =
            hub_with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HF_ENDPOINT", "http://m/")]);
        assert_eq!(hub.cache_dir, PathBuf::from("/c"));
        assert_eq!(hub.endpoint, "http://m");
        assert_eq!(
            hub_with(&[("XDG_CACHE_HOME", "/x")]).cache_dir,
            PathBuf::from("/x/huggingface/hub")
        );
    }

    #[test]
    fn a_token_comes_from_the_variable_or_the_login_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let hf_home = home.path().to_str().unwrap();
        assert_eq!(hub_with(&[("HF_HOME", hf_home)]).token.as_deref(), Some("from-file"));
        let both = hub_with(&[("HF_HOME", hf_home), ("HF_TOKEN", "from-env")]);
        assert_eq!(both.token.as_deref(), Some("from-env"));
    }

    #[test]
    fn offline_takes_the_words_for_yes() {
        assert!(hub_with(&[("HF_HUB_OFFLINE", "1")]).is_offline);
        assert!(hub_with(&[("TRANSFORMERS_OFFLINE", "True")]).is_offline);
        assert!(!hub_with(&[("HF_HUB_OFFLINE", "0")]).is_offline);
    }
}
