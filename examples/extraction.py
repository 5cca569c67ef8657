"""Structured extraction: a model's JSON breaks a Pydantic model, and the chain gives the object all the same.

python examples/extraction.py
"""

from datetime import date

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import PydanticOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field, model_validator

from rfx_agent import PydanticVerifier, with_recovery
from rfx_agent.events import Event, Judged


class Item(BaseModel):
    """One line of an invoice."""

    name: str
    quantity: int = Field(gt=0)
    price: float


class Invoice(BaseModel):
    """An invoice whose lines add up."""

    issued: date
    items: list[Item]
    total: float

    @model_validator(mode="after")
    def adds_up(self) -> "Invoice":
        """The model must have read every line."""
        if abs(sum(item.quantity * item.price for item in self.items) - self.total) > 0.005:
            raise ValueError("the items do not add up to the total")
        return self


LETTER = "Invoice of 3 May 2026: 2 lamps at 19.50 each and one shade at 7.25. Total: 46.25."


def tell(event: Event) -> None:
    """Print each verdict."""
    if isinstance(event, Judged):
        print(f"{event.rollout_id}: {'valid' if event.passed else 'not valid'}")


def main() -> None:
    """Extract one invoice."""
    lamps = '{"name": "lamp", "quantity": 2, "price": 19.5}'
    shade = '{"name": "shade", "quantity": 1, "price": 7.25}'
    # A double, so that nothing has to be downloaded: the schema is broken, a line is lost, all is well.
    texts = [
        f'{{"issued": "3 May", "items": [{lamps}, {shade}], "total": 46.25}}',
        f'{{"issued": "2026-05-03", "items": [{lamps}], "total": 46.25}}',
        f'{{"issued": "2026-05-03", "items": [{lamps}, {shade}], "total": 46.25}}',
    ]
    model = GenericFakeChatModel(messages=iter([AIMessage(text) for text in texts]))
    parser = PydanticOutputParser(pydantic_object=Invoice)
    prompt = ChatPromptTemplate.from_messages([("human", "{letter}\n\n{how}")]).partial(
        how=parser.get_format_instructions()
    )
    # The parser raises on the first two texts: for the wrapper these are failed answers, not a broken chain.
    verifier = PydanticVerifier(Invoice)
    extract = with_recovery(prompt | model | parser, verifier=verifier, extra_samples=2, on_event=tell)
    invoice = extract.invoke({"letter": LETTER})
    print(type(invoice).__name__, invoice.issued, [item.name for item in invoice.items], invoice.total)


if __name__ == "__main__":
    main()
