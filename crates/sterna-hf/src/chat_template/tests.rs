use super::*;

fn render(template: &str) -> Result<String> {
    let template = ChatTemplate::compile(template, Path::new("t.jinja"))?;
    template.render(&[Message::new("user", "hi")], false, &Map::new())
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
