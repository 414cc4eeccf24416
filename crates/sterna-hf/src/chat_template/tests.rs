use super::*;

fn render(template: &str) -> Result<String> {
    let template = ChatTemplate::compile(template, Path::new("t.jinja"))?;
    template.render(&vec![Message::new("user", "hi")].into(), false, &Map::new())
}

#[test]
fn an_endless_template_runs_out_of_fuel() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let error = render(nested).unwrap_err();
    assert!(matches!(error, Error::TemplateRender { .. }), "{error:?}");
}

#[test]
fn a_template_cannot_write_without_end() {
    let error = render("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}").unwrap_err();
    assert!(matches!(error, Error::TemplateRender { .. }), "{error:?}");
}

#[test]
fn a_template_cannot_read_files() {
    assert!(render("{% include 'Cargo.toml' %}").is_err());
    assert!(render("{% import '/etc/passwd' as x %}{{ x }}").is_err());
}

#[test]
fn a_raised_exception_keeps_its_words() {
    let error = render("\n{{ raise_exception('roles must alternate') }}").unwrap_err();
    let Error::TemplateRefused { message, .. } = &error else { panic!("{error:?}") };
    assert_eq!(message, "roles must alternate");
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = render("\n\n{% if %}").unwrap_err();
    let Error::TemplateSyntax { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.line(), Some(3));
}

#[test]
fn values_cannot_be_changed() {
    assert!(render("{% set x = messages.append(1) %}").is_err());
    assert!(render("{% set x = messages[0].update({}) %}").is_err());
}

#[test]
fn a_template_as_deep_as_it_is_long_is_an_error_and_no_overflow() {
    for (open, close) in
        [("- ", ""), ("not ", ""), ("[", "]"), ("(", ")"), ("a.", "b"), ("a ~ ", "b"), ("a[", "]")]
    {
        // Half of it: the engine takes time that grows with the square of the depth.
        let times = MAX_SOURCE_BYTES / 2 / (open.len() + close.len());
        let source = format!("{{{{ {}a{} }}}}", open.repeat(times), close.repeat(times));
        // What each means is not the question; that it answers is.
        let _ = render(&source);
    }
    let nested = "{% if a %}".repeat(5000) + &"{% endif %}".repeat(5000);
    assert!(render(&nested).is_err());
}

#[test]
fn values_nested_as_deep_as_the_fuel_reaches_are_dropped() {
    let nest = "{% set ns = namespace(l=[]) %}{% for a in range(99999) %}{% for b in range(99999) %}\
                {% set ns.l = [ns.l] %}{% endfor %}{% endfor %}";
    let error = render(nest).unwrap_err();
    let Error::TemplateRender { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), ErrorKind::OutOfFuel);
}

#[test]
fn a_text_that_doubles_is_given_up_by_its_memory() {
    // Two gigabytes at the end, were it let run: what no limit on instructions sees.
    let double = "{% set ns = namespace(t='xx') %}{% for a in range(30) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}";
    let error = render(double).unwrap_err();
    let Error::TemplateOverrun { source: Overrun::Memory { .. }, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(error.hint().is_some());
}

#[test]
fn templates_longer_than_any_are_refused() {
    let error = render(&"a".repeat(MAX_SOURCE_BYTES + 1)).unwrap_err();
    assert!(matches!(error, Error::TemplateTooLong { .. }), "{error:?}");
}

#[test]
fn an_indent_of_a_trillion_spaces_is_refused() {
    assert!(render("{{ messages | tojson(indent=1000000000000) }}").is_err());
}
