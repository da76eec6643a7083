"""Store what services tell with Track; find a node's faults without looking at all of them.

Revision: 0002, after 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from portal.database import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "tracking_records",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("organization_id", sa.String(length=36), nullable=False),
        sa.Column("node_id", sa.String(length=36), nullable=False),
        sa.Column("stream", sa.String(length=64), nullable=False),
        sa.Column("service", sa.String(length=100), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("boot", sa.String(length=64), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_tracking_records_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_tracking_records_organization_id_organizations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tracking_records")),
        sa.UniqueConstraint(
            "node_id", "stream", "service", "sequence", name=op.f("uq_tracking_records_node_id_stream_service_sequence")
        ),
    )
    op.create_index("ix_tracking_records_organization_id_id", "tracking_records", ["organization_id", "id"])
    op.create_index("ix_tracking_records_node_id_id", "tracking_records", ["node_id", "id"])
    op.create_index(op.f("ix_tracking_records_received_at"), "tracking_records", ["received_at"])
    op.create_index("ix_faults_node_id_id", "faults", ["node_id", "id"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_faults_node_id_id", table_name="faults")
    op.drop_table("tracking_records")
