// Anthropic's client for Node.

const assert = require("node:assert/strict");
const { test } = require("node:test");
const Anthropic = require("@anthropic-ai/sdk");
const { betaZodTool } = require("@anthropic-ai/sdk/helpers/beta/zod");
const { zodOutputFormat } = require("@anthropic-ai/sdk/helpers/zod");
const { ASK, HI, MODEL, Person, SCRIPTED, TOO_LONG, Weather, parameters } = require("./asked.cjs");

const client = (url, key = "secret") =>
  new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const scripted = client(SCRIPTED);
const model = client(MODEL);
const said = (content) => [{ role: "user", content }];
const asked = (content, more) => ({
  model: "default",
  max_tokens: 99,
  messages: said(content),
  ...more,
});
const weather = { name: "weather", input_schema: parameters };

test("chat", async () => {
  const answer = await scripted.messages.create(asked(HI, { system: "Be kind." }));
  assert.deepEqual(answer.content.map((block) => block.text), ["Hello there, friend"]);
  assert.equal(answer.stop_reason, "end_turn");
});

test("stream", async () => {
  const pieces = [];
  const stream = scripted.messages.stream(asked(HI)).on("text", (piece) => pieces.push(piece));
  assert.equal(await stream.finalText(), "Hello there, friend");
  assert.equal(pieces.join(""), "Hello there, friend");
  assert.ok((await stream.finalMessage()).usage.output_tokens > 0);
});

test("stream of the embedded model", async () => {
  const stream = model.messages.stream(asked(HI, { max_tokens: 8 }));
  const final = await stream.finalMessage();
  assert.equal(final.stop_reason, "max_tokens");
  assert.equal(final.usage.output_tokens, 8);
});

test("a thought and a call, streamed, and its result", async () => {
  const tools = [weather];
  const stream = scripted.messages.stream(asked(ASK, { tools }));
  const first = await stream.finalMessage();
  assert.deepEqual(first.content.map((block) => block.type), ["thinking", "tool_use"]);
  const call = first.content[1];
  assert.deepEqual([call.name, call.input], ["weather", { city: "Rome" }]);
  assert.equal(first.stop_reason, "tool_use");
  const result = { type: "tool_result", tool_use_id: call.id, content: "sunny" };
  const second = await scripted.messages.create({
    ...asked(ASK, { tools }),
    messages: [
      ...said(ASK),
      { role: "assistant", content: first.content },
      { role: "user", content: [result] },
    ],
  });
  assert.equal(second.content[0].text, "Sunny.");
});

test("tools, run by the client", async () => {
  const tool = betaZodTool({
    name: "weather",
    description: "Weather of a city.",
    inputSchema: Weather,
    run: ({ city }) => `sunny in ${city}`,
  });
  const final = await scripted.beta.messages.toolRunner(asked(ASK, { tools: [tool] }));
  assert.equal(final.content[0].text, "Sunny.");
});

test("a call that is demanded", async () => {
  const choice = { tool_choice: { type: "any" }, tools: [weather] };
  const answer = await model.messages.create(asked(ASK, choice));
  Weather.parse(answer.content[0].input);
  assert.equal(answer.stop_reason, "tool_use");
});

test("a schema", async () => {
  const answer = await model.messages.parse(
    asked("Bob is 5 years old.", { output_config: { format: zodOutputFormat(Person) } }),
  );
  Person.parse(answer.parsed_output);
});

test("tokens are counted", async () => {
  const { max_tokens, ...body } = asked(HI, { tools: [weather] });
  assert.ok((await scripted.messages.countTokens(body)).input_tokens > 0);
});

test("errors", async () => {
  const ask = (more, by = scripted) => by.messages.create(asked(HI, more));
  await assert.rejects(ask({ model: "other" }), Anthropic.NotFoundError);
  await assert.rejects(ask({ temperature: -1 }), Anthropic.BadRequestError);
  const tooLong = ask({ messages: said(TOO_LONG) }, model);
  await assert.rejects(tooLong, /prompt is too long: \d+ tokens > \d+ maximum/);
  await assert.rejects(ask({}, client(SCRIPTED, "wrong")), Anthropic.AuthenticationError);
  await assert.rejects(ask({ messages: said("break") }), (error) => {
    assert.ok(error instanceof Anthropic.InternalServerError);
    assert.equal(error.error.error.type, "api_error");
    return true;
  });
});
